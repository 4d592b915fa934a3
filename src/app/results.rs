//! The last answers, by job id: one that is delivered again is answered with what is at hand, and not computed twice.

use crate::job::reply::Answer;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Bytes of vectors that are kept.
const BYTES_MAX: usize = 32 << 20;
/// Answers larger than this are not kept: one would push out all the others.
const ANSWER_BYTES_MAX: usize = BYTES_MAX / 16;

/// An answer with its fingerprint.
pub type Result = (Answer, String);

/// Which job: the id its sender gave it, and the very message, so that an id used twice for two jobs harms nobody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The id.
    pub id: String,
    /// Equal for equal bodies.
    pub digest: u64,
}

/// Answers, the oldest forgotten first.
#[derive(Debug, Default)]
pub struct Results {
    kept: HashMap<Key, Arc<Result>>,
    order: VecDeque<Key>,
    bytes: usize,
}

impl Results {
    /// Keeps an answer.
    pub fn keep(&mut self, key: Key, result: &Result) {
        let bytes = size(result);
        if bytes > ANSWER_BYTES_MAX || self.kept.contains_key(&key) {
            return;
        }
        self.kept.insert(key.clone(), Arc::new(result.clone()));
        self.order.push_back(key);
        self.bytes += bytes;
        while self.bytes > BYTES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            let forgotten = self.kept.remove(&oldest);
            self.bytes -= forgotten.map_or(0, |result| size(&result));
        }
    }

    /// What was answered to this job.
    pub fn recall(&self, key: &Key) -> Option<Arc<Result>> {
        self.kept.get(key).cloned()
    }
}

/// About as many bytes as it takes here.
fn size((answer, _): &Result) -> usize {
    let vectors = answer.vectors.iter().map(|vector| 4 * vector.len() + 24);
    256 + vectors.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::request::Encoding;

    fn answer(inputs: usize) -> Result {
        let answer = Answer {
            model: "m".into(),
            first: 0,
            vectors: vec![vec![0.5; 1000]; inputs],
            encoding: Encoding::Float,
            tokens: 3,
            truncated: Vec::new(),
        };
        (answer, "f".into())
    }

    #[test]
    fn answers_are_kept_by_id_and_body_within_a_bound() {
        let mut results = Results::default();
        let key = |n: usize, digest| Key {
            id: n.to_string(),
            digest,
        };
        for n in 0..100 {
            results.keep(key(n, 7), &answer(100));
            assert!(results.bytes <= BYTES_MAX);
        }
        assert!(results.recall(&key(0, 7)).is_none());
        assert!(results.recall(&key(99, 7)).is_some());
        assert!(results.recall(&key(99, 8)).is_none());
        assert_eq!(results.kept.len(), results.order.len());
        results.keep(key(200, 7), &answer(1000));
        assert!(results.recall(&key(200, 7)).is_none(), "too large to keep");
    }
}
