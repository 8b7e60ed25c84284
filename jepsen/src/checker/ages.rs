//! Local reads (design, section 5): the age that an answer claims is at least the true one, and who names a greatest age
//! is given nothing older.
//!
//! The true age is not known, but a bound of it: if a write of a higher revision had been acknowledged before the read
//! was sent, then what the answer shows is older than that acknowledgement.

use std::time::Duration;

use super::verdict::Verdict;
use crate::history::Answer;

/// Ages are told in whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(2);

/// Judges local reads by the writes that were acknowledged before them.
#[must_use]
pub fn check(answers: &[Answer]) -> Verdict {
    let mut verdict = Verdict::new("ages of local reads");
    let overtaken = Overtaken::new(answers);
    let (mut refused, mut unknown, mut stale) = (0, 0, 0);
    let mut oldest = Duration::ZERO;
    for answer in answers {
        let Answer::Local {
            server,
            sent,
            max_age,
            answer,
            ..
        } = answer
        else {
            continue;
        };
        verdict.judged += 1;
        let Some((revision, age)) = *answer else {
            refused += 1;
            continue;
        };
        let proven = overtaken
            .since(revision)
            .map_or(Duration::ZERO, |since| sent.saturating_sub(since));
        stale += usize::from(!proven.is_zero());
        oldest = oldest.max(proven);
        unknown += usize::from(age.is_none());
        if let Some(age) = age
            && age + ROUNDING < proven
        {
            verdict.find(
                *sent,
                format!(
                    "server {server} answered with revision {revision} and claimed an age of {age:?} at most; a later \
                     revision had been acknowledged {proven:?} before it was asked"
                ),
            );
        }
        if let Some(max_age) = max_age {
            let claimed = age.is_none_or(|age| age > *max_age + ROUNDING);
            if claimed || proven > *max_age + ROUNDING {
                verdict.find(
                    *sent,
                    format!(
                        "server {server} was to answer with nothing older than {max_age:?}, and answered with revision \
                         {revision}, which is {proven:?} old for certain and {age:?} by its own word"
                    ),
                );
            }
        }
    }
    verdict.figures.push(format!(
        "{stale} answers were surely not current, the oldest by {oldest:?}; {refused} refused as too old, {unknown} of \
         unknown age"
    ));
    verdict
}

/// From when on each revision was surely not the last one any more.
struct Overtaken {
    /// By revision: the first acknowledgement of it or a later one.
    since: Vec<(u64, Duration)>,
}

impl Overtaken {
    fn new(answers: &[Answer]) -> Self {
        let mut since: Vec<(u64, Duration)> = answers
            .iter()
            .filter_map(|answer| match answer {
                Answer::Wrote { revision, time, .. } => Some((*revision, *time)),
                _ => None,
            })
            .collect();
        since.sort();
        let mut first = Duration::MAX;
        for (_, time) in since.iter_mut().rev() {
            first = first.min(*time);
            *time = first;
        }
        Self { since }
    }

    /// When something of a higher revision was acknowledged first.
    fn since(&self, revision: u64) -> Option<Duration> {
        let next = self.since.partition_point(|(of, _)| *of <= revision);
        self.since.get(next).map(|(_, time)| *time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn wrote(revision: u64, time: u64) -> Answer {
        Answer::Wrote {
            service: "g/s".into(),
            revision,
            time: ms(time),
        }
    }

    fn read(sent: u64, max_age: Option<u64>, answer: Option<(u64, Option<u64>)>) -> Answer {
        Answer::Local {
            server: 1,
            sent: ms(sent),
            end: ms(sent + 1),
            max_age: max_age.map(ms),
            answer: answer.map(|(revision, age)| (revision, age.map(ms))),
        }
    }

    fn found(read: Answer) -> usize {
        // Acknowledgements may come in another order than revisions.
        check(&[wrote(5, 100), wrote(7, 300), wrote(6, 350), read])
            .findings
            .len()
    }

    #[test]
    fn honest_ages_and_refusals_pass() {
        assert_eq!(found(read(400, None, Some((7, Some(0))))), 0);
        assert_eq!(found(read(400, None, Some((6, Some(100))))), 0);
        assert_eq!(found(read(400, None, Some((4, Some(300))))), 0);
        assert_eq!(found(read(400, None, Some((4, None)))), 0);
        assert_eq!(found(read(400, Some(50), None)), 0);
        assert_eq!(found(read(400, Some(150), Some((6, Some(120))))), 0);
    }

    #[test]
    fn younger_than_true_and_older_than_wanted_are_caught() {
        assert_eq!(found(read(400, None, Some((6, Some(90))))), 1);
        assert_eq!(found(read(400, None, Some((4, Some(200))))), 1);
        // It says itself that it is too old, or does not know.
        assert_eq!(found(read(400, Some(50), Some((7, Some(60))))), 1);
        assert_eq!(found(read(400, Some(50), Some((7, None)))), 1);
        // Too old, whatever it says: and that is wrong as well.
        assert_eq!(found(read(400, Some(50), Some((6, Some(10))))), 2);
        assert!(!check(&[]).is_good(), "nothing was judged");
    }
}
