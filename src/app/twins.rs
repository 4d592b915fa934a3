//! Jobs with the same id and body that are here at the same time: one is computed, the others wait for its answer.

use super::results::Key;
use crate::job::{JobKey, Lane};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Jobs that are computed and could answer others, and those that wait for them. As many as are here at most.
#[derive(Debug, Default)]
pub struct Twins {
    firsts: HashMap<Key, First>,
    keys: HashMap<JobKey, Key>,
}

/// The one that is computed.
#[derive(Debug)]
struct First {
    job: JobKey,
    lane: Lane,
    others: Vec<JobKey>,
}

impl Twins {
    /// A job is about to be computed. True if it is to wait for another instead. What somebody waits for does not wait
    /// for what has time; and what goes on from a queue of ours waits for nothing, since a death is charged to it.
    pub fn joins(&mut self, key: Key, job: JobKey, lane: Lane) -> bool {
        match self.firsts.entry(key.clone()) {
            Entry::Vacant(place) => {
                let others = Vec::new();
                place.insert(First { job, lane, others });
                self.keys.insert(job, key);
                false
            }
            Entry::Occupied(first) => {
                let first = first.into_mut();
                let overtakes = lane == Lane::Interactive && first.lane != Lane::Interactive;
                if overtakes || lane == Lane::Resumed || first.job == job {
                    return false;
                }
                first.others.push(job);
                self.keys.insert(job, key);
                true
            }
        }
    }

    /// The job is answered, or gone. Those that have waited for it.
    pub fn ended(&mut self, job: JobKey) -> Vec<JobKey> {
        let Some(key) = self.keys.remove(&job) else {
            return Vec::new();
        };
        if let Some(first) = self.firsts.get_mut(&key).filter(|first| first.job != job) {
            first.others.retain(|other| *other != job);
            return Vec::new();
        }
        let others = self.firsts.remove(&key).map(|first| first.others);
        let others = others.unwrap_or_default();
        others.iter().for_each(|other| drop(self.keys.remove(other)));
        others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(digest: u64) -> Key {
        let id = "job".into();
        Key { id, digest }
    }

    #[test]
    fn one_is_computed_and_the_others_wait_for_it() {
        let mut twins = Twins::default();
        let jobs: Vec<JobKey> = (1..=5).map(JobKey).collect();
        assert!(!twins.joins(key(1), jobs[0], Lane::Interactive));
        assert!(!twins.joins(key(2), jobs[1], Lane::Interactive), "another body");
        for job in &jobs[2..5] {
            assert!(twins.joins(key(1), *job, Lane::Bulk));
        }
        assert!(twins.ended(jobs[3]).is_empty(), "one that waited is gone");
        assert_eq!(twins.ended(jobs[0]), [jobs[2], jobs[4]]);
        assert!(twins.ended(jobs[0]).is_empty(), "told once");
        // Without an answer the first of them is computed, and the rest wait for that.
        assert!(!twins.joins(key(1), jobs[2], Lane::Bulk));
        assert!(twins.joins(key(1), jobs[4], Lane::Bulk));
        for job in jobs {
            twins.ended(job);
        }
        assert!(twins.firsts.is_empty() && twins.keys.is_empty());
    }

    #[test]
    fn what_somebody_waits_for_and_what_may_be_charged_wait_for_nobody() {
        let mut twins = Twins::default();
        assert!(!twins.joins(key(1), JobKey(1), Lane::Bulk));
        assert!(!twins.joins(key(1), JobKey(2), Lane::Interactive));
        assert!(!twins.joins(key(1), JobKey(3), Lane::Resumed));
        assert!(twins.joins(key(1), JobKey(4), Lane::Bulk));
        assert!(twins.ended(JobKey(2)).is_empty() && twins.ended(JobKey(3)).is_empty());
        assert_eq!(twins.ended(JobKey(1)), [JobKey(4)]);
    }
}
