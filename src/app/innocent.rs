//! Jobs that came back because a session was lost, while the process that had them lives: they ended nobody.

use std::collections::{HashMap, VecDeque};

/// Ids that are remembered; more than are ever held at once.
const REMEMBERED: usize = 16_384;

/// Losses of a session in a row that are held against nobody. A job that is always there may be why they happen.
const EXCUSED_MAX: u32 = 3;

/// Their ids and how often each was there, the oldest forgotten first.
#[derive(Debug, Default)]
pub struct Innocent {
    order: VecDeque<String>,
    ids: HashMap<String, u32>,
}

impl Innocent {
    /// The job was here when its session was lost.
    pub fn remember(&mut self, id: &str) {
        if let Some(times) = self.ids.get_mut(id) {
            *times = times.saturating_add(1);
            return;
        }
        self.ids.insert(id.to_owned(), 1);
        self.order.push_back(id.to_owned());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }

    /// Whether it is known to have come back for that reason.
    pub fn is(&self, id: &str) -> bool {
        self.ids.get(id).is_some_and(|times| *times <= EXCUSED_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten() {
        let mut innocent = Innocent::default();
        for n in 0..=REMEMBERED {
            innocent.remember(&n.to_string());
            innocent.remember(&n.to_string());
        }
        for _ in 0..EXCUSED_MAX {
            assert!(innocent.is("2"));
            innocent.remember("2");
            innocent.remember("2");
            if innocent.ids["2"] > EXCUSED_MAX {
                break;
            }
        }
        assert!(!innocent.is("2"));
        assert!(!innocent.is("0") && innocent.is("1") && innocent.is(&REMEMBERED.to_string()));
        assert_eq!(innocent.ids.len(), innocent.order.len());
    }
}
