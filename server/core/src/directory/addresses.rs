//! The addresses of a node. There are few, but every node has some, so they lie in one piece like
//! [`super::Labels`], and copies share it.

use std::fmt;
use std::sync::Arc;

use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::labels::Text;
use super::packed::{self, Packing, take_number, take_text};
use super::record::Address;

/// Ways to reach a node, in the order in which they were given. Cheap to clone.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// `None`: there are none.
    packed: Option<Arc<str>>,
}

/// One of [`Addresses`], where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AddressRef<'a> {
    /// Its purpose: `http`, `grpc`; unique in a node.
    pub name: &'a str,
    /// Host name or IP address.
    pub host: &'a str,
    /// TCP or UDP port.
    pub port: u16,
}

impl Addresses {
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

    /// Bytes that they take up.
    pub(super) fn weight(&self) -> usize {
        self.packed.as_ref().map_or(0, |packed| packed.len())
    }

    /// The first one.
    #[must_use]
    pub fn first(&self) -> Option<AddressRef<'_>> {
        self.iter().next()
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = AddressRef<'_>> {
        let (_, mut rest) = packed::open(self.packed.as_deref());
        std::iter::from_fn(move || {
            Some(AddressRef {
                name: take_text(&mut rest)?,
                host: take_text(&mut rest)?,
                port: u16::try_from(take_number(&mut rest)?).ok()?,
            })
        })
    }
}

fn pack(packing: &mut Packing, name: &[u8], host: &[u8], port: u16) {
    packing.begin_record();
    packing.put_text(name);
    packing.put_text(host);
    packing.put_number(port.into());
}

impl<'a> FromIterator<AddressRef<'a>> for Addresses {
    fn from_iter<I: IntoIterator<Item = AddressRef<'a>>>(addresses: I) -> Self {
        let mut packing = Packing::begin();
        for AddressRef { name, host, port } in addresses {
            pack(&mut packing, name.as_bytes(), host.as_bytes(), port);
        }
        let packed = packing.finish().expect("it is made of text");
        Self { packed }
    }
}

impl<'a> From<&'a Address> for AddressRef<'a> {
    fn from(address: &'a Address) -> Self {
        Self {
            name: &address.name,
            host: &address.host,
            port: address.port,
        }
    }
}

impl From<AddressRef<'_>> for Address {
    fn from(address: AddressRef<'_>) -> Self {
        Self {
            name: address.name.into(),
            host: address.host.into(),
            port: address.port,
        }
    }
}

impl From<Vec<Address>> for Addresses {
    fn from(addresses: Vec<Address>) -> Self {
        addresses.iter().map(AddressRef::from).collect()
    }
}

impl From<&Addresses> for Vec<Address> {
    fn from(addresses: &Addresses) -> Self {
        addresses.iter().map(Address::from).collect()
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for Addresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.len()))?;
        for address in self.iter() {
            list.serialize_element(&address)?;
        }
        list.end()
    }
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(AddressesVisitor)
    }
}

struct AddressesVisitor;

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Read<'a> {
    name: Text<'a>,
    host: Text<'a>,
    port: u16,
}

impl<'de> Visitor<'de> for AddressesVisitor {
    type Value = Addresses;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of addresses")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Addresses, A::Error> {
        let mut packing = Packing::begin();
        while let Some(Read { name, host, port }) = list.next_element::<Read<'de>>()? {
            pack(&mut packing, &name.0, &host.0, port);
        }
        let packed = packing.finish().map_err(A::Error::custom)?;
        Ok(Addresses { packed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Vec<Address>> {
        let address = |name: &str, host: &str, port| Address {
            name: name.into(),
            host: host.into(),
            port,
        };
        vec![
            vec![],
            vec![address("", "", 0)],
            vec![address("http", "10.0.0.1", 8080)],
            vec![
                address("z", &"h".repeat(253), u16::MAX),
                address("übrig", "::1", 64),
                address("a", "", 63),
            ],
        ]
    }

    #[test]
    fn they_are_the_list_they_were_made_of() {
        for sample in samples() {
            let addresses = Addresses::from(sample.clone());
            assert_eq!(Vec::from(&addresses), sample);
            assert_eq!(addresses.len(), sample.len());
            assert_eq!(addresses.is_empty(), sample.is_empty());
            assert_eq!(addresses.first().map(Address::from), sample.first().cloned());
        }
    }

    #[test]
    fn their_encoding_is_that_of_a_list() {
        for sample in samples() {
            let addresses = Addresses::from(sample.clone());
            let bytes = postcard::to_allocvec(&sample).unwrap();
            assert_eq!(postcard::to_allocvec(&addresses).unwrap(), bytes);
            assert_eq!(postcard::from_bytes::<Addresses>(&bytes).unwrap(), addresses);
        }
    }
}
