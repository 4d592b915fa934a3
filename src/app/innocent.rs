//! Jobs that came back because a session was lost, while the process that had them lives: they ended nobody.

use std::collections::{HashSet, VecDeque};

/// Ids that are remembered; more than are ever held at once.
const REMEMBERED: usize = 8192;

/// Their ids, the oldest forgotten first.
#[derive(Debug, Default)]
pub struct Innocent {
    order: VecDeque<String>,
    ids: HashSet<String>,
}

impl Innocent {
    /// The job was here when its session was lost.
    pub fn remember(&mut self, id: &str) {
        if !self.ids.insert(id.to_owned()) {
            return;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }

    /// Whether it is known to have come back for that reason.
    pub fn is(&self, id: &str) -> bool {
        self.ids.contains(id)
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
        assert!(!innocent.is("0") && innocent.is("1") && innocent.is(&REMEMBERED.to_string()));
        assert_eq!(innocent.ids.len(), innocent.order.len());
    }
}
