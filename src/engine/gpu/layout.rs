//! How a batch lies on the device: all tokens below one another, no padding, the shortest sequence first. So sequences
//! of one length are neighbours, and a group of them is a block of rows that needs neither copy nor mask.

use crate::engine::Sequence;
use crate::engine::layers::embedding::Places;

/// Sequences of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// The first row of the first.
    pub row: usize,
    /// How many.
    pub count: usize,
    /// Tokens of each.
    pub tokens: usize,
}

/// What of a batch goes to the device.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// Of all tokens.
    pub ids: Vec<u32>,
    /// The row of each token in the table of positions, where there is one.
    pub positions: Vec<u32>,
    /// The place of each token in its sequence, from 0.
    pub places: Vec<u32>,
    /// The first row of each sequence, and the number of all rows behind the last.
    pub starts: Vec<u32>,
    /// Neighbours of one length.
    pub groups: Vec<Group>,
}

/// The order in which sequences lie: by length. Equal ones stay in order, so that equal batches give equal bits.
pub fn order(batch: &[&Sequence]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..batch.len()).collect();
    order.sort_by_key(|index| batch[*index].ids.len());
    order
}

impl Layout {
    /// Of sequences in [`order`].
    pub fn new(sequences: &[&Sequence], positions: Option<Places>) -> Layout {
        let mut layout = Layout {
            ids: Vec::new(),
            positions: Vec::new(),
            places: Vec::new(),
            starts: vec![0],
            groups: Vec::new(),
        };
        for sequence in sequences {
            let tokens = sequence.ids.len();
            let row = layout.ids.len();
            match layout.groups.last_mut() {
                Some(group) if group.tokens == tokens => group.count += 1,
                _ => layout.groups.push(Group {
                    row,
                    count: 1,
                    tokens,
                }),
            }
            layout.ids.extend_from_slice(&sequence.ids);
            layout.places.extend(0..tokens as u32);
            if let Some(positions) = positions {
                let mut counted = 0;
                let rows = sequence
                    .ids
                    .iter()
                    .map(|id| positions.next(*id, &mut counted) as u32);
                layout.positions.extend(rows);
            }
            layout.starts.push(layout.ids.len() as u32);
        }
        layout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lengths_are_neighbours() {
        let sequence = |ids: &[u32]| Sequence {
            ids: ids.into(),
            truncated: false,
            prompt_tokens: 0,
        };
        let batch = [
            sequence(&[7, 8, 9]),
            sequence(&[5]),
            sequence(&[1, 2, 1]),
            sequence(&[4]),
        ];
        let batch: Vec<&Sequence> = batch.iter().collect();
        let order = order(&batch);
        assert_eq!(order, [1, 3, 0, 2]);
        let sorted: Vec<&Sequence> = order.iter().map(|index| batch[*index]).collect();
        let layout = Layout::new(&sorted, Some(Places::Behind { pad: 1 }));
        assert_eq!(layout.ids, [5, 4, 7, 8, 9, 1, 2, 1]);
        assert_eq!(layout.places, [0, 0, 0, 1, 2, 0, 1, 2]);
        assert_eq!(layout.positions, [2, 2, 2, 3, 4, 1, 2, 1]);
        assert_eq!(layout.starts, [0, 1, 2, 5, 8]);
        let group = |row, count, tokens| Group { row, count, tokens };
        assert_eq!(layout.groups, [group(0, 2, 1), group(2, 2, 3)]);
    }
}
