//! What is added to the scores of attention by the distance of two tokens (MPNet, after T5).

use crate::engine::LoadError;
use crate::engine::weights::Tensors;

/// Buckets in which MPNet puts distances, half of them for tokens that lie ahead.
pub const BUCKETS: usize = 32;
/// From this distance on all share the last bucket of their side.
const FARTHEST: f32 = 128.0;

/// One number for each head and each distance.
#[derive(Debug)]
pub struct Distances {
    /// Tokens that two may lie apart, plus one.
    places: usize,
    /// For each head, the numbers for a key that lies `-(places - 1)` to `places - 1` behind the query.
    rows: Vec<f32>,
}

impl Distances {
    /// Reads `name.weight`, a row for each bucket and a column for each head, for sequences of `places` tokens.
    ///
    /// # Errors
    /// The tensor is missing, misshapen or damaged.
    pub fn load(
        tensors: &Tensors<'_>,
        name: &str,
        heads: usize,
        places: usize,
    ) -> Result<Distances, LoadError> {
        let mut buckets = Vec::with_capacity(BUCKETS * heads);
        tensors.rows(&format!("{name}.weight"), &[BUCKETS, heads], &mut |_, row| {
            buckets.extend_from_slice(row);
        })?;
        let span = 2 * places - 1;
        let mut rows = Vec::with_capacity(heads * span);
        for head in 0..heads {
            let number = |index: usize| {
                let ahead = index as isize - (places as isize - 1);
                buckets[bucket(ahead) * heads + head]
            };
            rows.extend((0..span).map(number));
        }
        Ok(Distances { places, rows })
    }

    /// The numbers of all heads, those of one behind the other, and the places.
    #[cfg(feature = "cuda")]
    pub fn table(&self) -> (&[f32], usize) {
        (&self.rows, self.places)
    }

    /// The numbers of `head` for a query at `query` and the keys from `first` on.
    pub fn of(&self, head: usize, query: usize, first: usize) -> &[f32] {
        let row = &self.rows[head * (2 * self.places - 1)..][..2 * self.places - 1];
        &row[self.places - 1 + first - query..]
    }
}

/// The bucket for a key that lies `ahead` tokens behind the query in reading order, negative for one before it.
fn bucket(ahead: isize) -> usize {
    let half = BUCKETS / 2;
    let side = if ahead > 0 { half } else { 0 };
    let distance = ahead.unsigned_abs();
    let exact = half / 2;
    let within = if distance < exact {
        distance
    } else {
        // Rounded to 32 bits as the reference does, since the result is cut to a whole number.
        let far = (distance as f32 / exact as f32).ln() / (FARTHEST / exact as f32).ln();
        (exact + (far * (half - exact) as f32) as usize).min(half - 1)
    };
    side + within
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `relative_position_bucket` of transformers' MPNet for these distances.
    #[test]
    fn buckets_are_those_of_the_reference() {
        let known = [
            (0, 0),
            (-1, 1),
            (1, 17),
            (-7, 7),
            (7, 23),
            (-8, 8),
            (8, 24),
            (-11, 8),
            (-12, 9),
            (16, 26),
            (-15, 9),
            (-22, 10),
            (-23, 11),
            (32, 28),
            (-31, 11),
            (-45, 12),
            (-46, 13),
            (64, 30),
            (-63, 13),
            (-90, 14),
            (-91, 15),
            (127, 31),
            (-127, 15),
            (-128, 15),
            (500, 31),
            (-500, 15),
        ];
        for (ahead, want) in known {
            assert_eq!(bucket(ahead), want, "{ahead}");
        }
    }
}
