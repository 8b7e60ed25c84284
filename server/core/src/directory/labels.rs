//! Free text by name. Labels and metadata are most of what a node takes up, so they lie in one piece, and copies
//! share it.
//!
//! The piece is text: how many entries there are, and key and value of each in the order of the keys, behind their lengths.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::packed::{self, Packing, take_text};

/// Free text by name, in the order of the names. Cheap to clone.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Labels {
    /// `None`: there are none.
    packed: Option<Arc<str>>,
}

impl Labels {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packed.is_none()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        packed::open(self.packed.as_deref()).0
    }

    /// About how many bytes their encoding has.
    pub(super) fn size_hint(&self) -> usize {
        self.packed.as_ref().map_or(1, |packed| packed.len() + 8)
    }

    /// Bytes that they take up.
    pub(super) fn weight(&self) -> usize {
        self.packed.as_ref().map_or(0, |packed| packed.len())
    }

    /// The value of a key. Walks them: there are few.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter()
            .find(|(known, _)| *known == key)
            .map(|(_, value)| value)
    }

    /// Keys and values, in the order of the keys.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter {
            rest: packed::open(self.packed.as_deref()).1,
        }
    }

    /// Sets a value; the one before.
    pub fn insert(&mut self, key: String, value: String) -> Option<String> {
        self.change(|entries| entries.insert(key, value))
    }

    /// Takes a key away; its value.
    pub fn remove(&mut self, key: &str) -> Option<String> {
        self.change(|entries| entries.remove(key))
    }

    /// Sets and takes away what is named.
    pub fn merge(&mut self, changes: &BTreeMap<String, Option<String>>) {
        if changes.is_empty() {
            return;
        }
        self.change(|entries| {
            for (key, value) in changes {
                match value {
                    Some(value) => entries.insert(key.clone(), value.clone()),
                    None => entries.remove(key),
                };
            }
        });
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut BTreeMap<String, String>) -> T) -> T {
        let mut entries = BTreeMap::from(&*self);
        let result = change(&mut entries);
        *self = entries.into();
        result
    }

    /// Of entries in the order of their keys, each key once.
    fn pack<'a>(entries: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut packing = Packing::begin();
        for (key, value) in entries {
            pack(&mut packing, key.as_bytes(), value.as_bytes());
        }
        let packed = packing.finish().expect("it is made of text");
        Self { packed }
    }
}

fn pack(packing: &mut Packing, key: &[u8], value: &[u8]) {
    packing.begin_record();
    packing.put_text(key);
    packing.put_text(value);
}

/// Keys and values of [`Labels`].
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        Some((take_text(&mut self.rest)?, take_text(&mut self.rest)?))
    }
}

impl<'a> IntoIterator for &'a Labels {
    type Item = (&'a str, &'a str);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(entries: BTreeMap<String, String>) -> Self {
        Self::pack(entries.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }
}

impl From<&Labels> for BTreeMap<String, String> {
    fn from(labels: &Labels) -> Self {
        labels
            .iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }
}

impl<const N: usize> From<[(String, String); N]> for Labels {
    fn from(entries: [(String, String); N]) -> Self {
        BTreeMap::from(entries).into()
    }
}

impl FromIterator<(String, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(entries: I) -> Self {
        entries.into_iter().collect::<BTreeMap<_, _>>().into()
    }
}

impl Extend<(String, String)> for Labels {
    fn extend<I: IntoIterator<Item = (String, String)>>(&mut self, more: I) {
        self.change(|entries| entries.extend(more));
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.len()))?;
        for (key, value) in self {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(LabelsVisitor)
    }
}

struct LabelsVisitor;

impl<'de> Visitor<'de> for LabelsVisitor {
    type Value = Labels;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
        let mut packing = Packing::begin();
        let mut last: Option<Text<'de>> = None;
        while let Some((key, value)) = map.next_entry::<Text<'de>, Text<'de>>()? {
            if last.is_some_and(|last| last.0 >= key.0) {
                let first = read(packing)?;
                return unordered(first, (key, value), map);
            }
            pack(&mut packing, &key.0, &value.0);
            last = Some(key);
        }
        read(packing)
    }
}

fn read<E: Error>(packing: Packing) -> Result<Labels, E> {
    let packed = packing.finish().map_err(E::custom)?;
    Ok(Labels { packed })
}

/// What was in order, what was not, and all that follows. As in any map, of two with one key the last counts.
#[cold]
fn unordered<'de, A: MapAccess<'de>>(
    first: Labels,
    (key, value): (Text<'de>, Text<'de>),
    mut map: A,
) -> Result<Labels, A::Error> {
    let mut entries = BTreeMap::from(&first);
    entries.insert(key.into_string()?, value.into_string()?);
    while let Some((key, value)) = map.next_entry()? {
        entries.insert(key, value);
    }
    Ok(entries.into())
}

/// The bytes of a text, from where they lie if they can be borrowed: whether they are text is asked once for all that
/// are packed together.
pub(super) struct Text<'a>(pub(super) Cow<'a, [u8]>);

impl Text<'_> {
    fn into_string<E: Error>(self) -> Result<String, E> {
        String::from_utf8(self.0.into_owned()).map_err(E::custom)
    }
}

impl<'a, 'de: 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text")
    }

    fn visit_borrowed_bytes<E>(self, text: &'de [u8]) -> Result<Self::Value, E> {
        Ok(Text(text.into()))
    }

    fn visit_bytes<E>(self, text: &[u8]) -> Result<Self::Value, E> {
        Ok(Text(text.to_owned().into()))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        self.visit_bytes(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        let entry = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        entries.iter().map(entry).collect()
    }

    fn samples() -> Vec<BTreeMap<String, String>> {
        let long = "v".repeat(5_000);
        vec![
            map(&[]),
            map(&[("", "")]),
            map(&[("zone", "a")]),
            map(&[("b", ""), ("a", "zwölf"), ("übrig", "\u{1F600}")]),
            map(&[("sixty-three", &"x".repeat(63)), ("sixty-four", &"x".repeat(64))]),
            map(&[("long", &long), ("longer", &long.repeat(60))]),
        ]
    }

    #[test]
    fn they_are_the_map_they_were_made_of() {
        for sample in samples() {
            let labels = Labels::from(sample.clone());
            assert_eq!(BTreeMap::from(&labels), sample);
            assert_eq!(
                (labels.len(), labels.is_empty()),
                (sample.len(), sample.is_empty())
            );
            for (key, value) in &sample {
                assert_eq!(labels.get(key), Some(value.as_str()));
            }
            assert_eq!(labels.get("missing"), None);
        }
    }

    #[test]
    fn their_encoding_is_that_of_a_map() {
        for sample in samples() {
            let labels = Labels::from(sample.clone());
            let bytes = postcard::to_allocvec(&sample).unwrap();
            assert_eq!(postcard::to_allocvec(&labels).unwrap(), bytes);
            assert_eq!(postcard::from_bytes::<Labels>(&bytes).unwrap(), labels);
        }
    }

    #[test]
    fn entries_out_of_order_are_put_in_order_and_the_last_of_two_counts() {
        let entries = [("b", "1"), ("a", "2"), ("b", "3")];
        let bytes = postcard::to_allocvec(&entries[..]).unwrap();
        let labels: Labels = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("a", "2"), ("b", "3")]);
    }

    #[test]
    fn changes_are_those_of_a_map() {
        let mut labels = Labels::from(map(&[("a", "1"), ("b", "2")]));
        assert_eq!(labels.insert("c".into(), "3".into()), None);
        assert_eq!(labels.remove("a"), Some("1".into()));
        labels.merge(&BTreeMap::from([
            ("b".into(), None),
            ("d".into(), Some("4".into())),
        ]));
        assert_eq!(labels, Labels::from(map(&[("c", "3"), ("d", "4")])));
        labels.extend(map(&[("c", "5")]));
        assert_eq!(labels.get("c"), Some("5"));
        labels.merge(&BTreeMap::from([("c".into(), None), ("d".into(), None)]));
        assert_eq!(labels, Labels::new());
    }
}
