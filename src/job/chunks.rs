//! Where the chunks of a streamed job begin and end.

/// The chunks of a streamed job, seen from one of its slices. They are those of the whole job, wherever the slice begins: where
/// that is within a chunk, the slice's first chunk is what is left of it. So every copy of a job has its chunks at the same places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    size: usize,
    before: usize,
}

impl Chunks {
    /// Chunks of `size` inputs, at least 1, of a slice with `before` inputs of the whole job in front of it.
    pub fn new(size: usize, before: usize) -> Chunks {
        Chunks {
            size: size.max(1),
            before,
        }
    }

    /// Inputs of a chunk.
    pub fn size(self) -> usize {
        self.size
    }

    /// Inputs of the whole job that come before the slice.
    pub fn before(self) -> usize {
        self.before
    }

    /// Inputs of the slice's first chunk that went out with a slice before.
    fn gone(self) -> usize {
        self.before % self.size
    }

    /// Which chunk of the slice an input of the slice is in, from 0.
    pub fn holding(self, input: usize) -> usize {
        (self.gone() + input) / self.size
    }

    /// The first input of a chunk of the slice.
    pub fn first(self, chunk: usize) -> usize {
        (chunk * self.size).saturating_sub(self.gone())
    }

    /// How many chunks so many inputs make, the last of which may be begun only.
    pub fn count(self, inputs: usize) -> usize {
        inputs.checked_sub(1).map_or(0, |last| self.holding(last) + 1)
    }

    /// How many of the first inputs are whole chunks.
    pub fn whole(self, inputs: usize) -> usize {
        self.first(self.holding(inputs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Goal: a slice's chunks cover it in order, and all end where those of the whole job do.
        #[test]
        fn chunks_end_where_those_of_the_whole_job_do(
            size in 0usize..9,
            before in 0usize..40,
            inputs in 1usize..40,
        ) {
            let chunks = Chunks::new(size, before);
            let size = size.max(1);
            prop_assert_eq!(chunks.first(0), 0);
            for input in 0..inputs {
                let chunk = chunks.holding(input);
                prop_assert!((chunks.first(chunk)..chunks.first(chunk + 1)).contains(&input));
                prop_assert_eq!((before + input) / size - before / size, chunk);
            }
            for chunk in 1..=chunks.count(inputs) {
                prop_assert_eq!((before + chunks.first(chunk)) % size, 0);
            }
            prop_assert!(chunks.first(chunks.count(inputs)) >= inputs);
            let whole = chunks.whole(inputs);
            prop_assert!(whole <= inputs && inputs - whole < size);
            prop_assert!(whole == 0 || (before + whole).is_multiple_of(size));
        }
    }
}
