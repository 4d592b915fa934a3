//! How near two forms of a model are to each other: by angle, and by what a search would find.

/// Nearest texts that are looked at.
pub const NEAREST: usize = 10;
/// Sums that a product of two vectors runs in side by side, so that the compiler can use wide registers.
const LANES: usize = 16;

/// Vectors of length one, one behind the other.
#[derive(Debug, Clone)]
pub struct Vectors {
    dimensions: usize,
    numbers: Vec<f32>,
}

impl Vectors {
    /// Of so many dimensions, none yet.
    pub fn new(dimensions: usize) -> Vectors {
        Vectors {
            dimensions,
            numbers: Vec::new(),
        }
    }

    /// Adds a vector of that many dimensions, which is not zero, brought to length one.
    pub fn push(&mut self, vector: &[f32]) {
        assert_eq!(vector.len(), self.dimensions, "all vectors are of one model");
        let length = dot_exact(vector, vector).sqrt();
        self.numbers
            .extend(vector.iter().map(|number| (f64::from(*number) / length) as f32));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.numbers.len() / self.dimensions
    }

    fn get(&self, at: usize) -> &[f32] {
        &self.numbers[at * self.dimensions..][..self.dimensions]
    }
}

fn dot_exact(a: &[f32], b: &[f32]) -> f64 {
    let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
    products.sum()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    for (a, b) in whole_a.iter().zip(whole_b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// The smallest and the mean cosine between vectors of the same texts; `None` of none.
pub fn cosines(a: &Vectors, b: &Vectors) -> Option<(f64, f64)> {
    assert_eq!(a.len(), b.len(), "the same texts");
    let all: Vec<f64> = (0..a.len())
        .map(|at| dot_exact(a.get(at), b.get(at)).clamp(-1.0, 1.0))
        .collect();
    let least = all.iter().copied().reduce(f64::min)?;
    Some((least, all.iter().sum::<f64>() / all.len() as f64))
}

/// For each text the [`NEAREST`] others, or as many as there are, the nearest first; of equally near ones the
/// earlier first.
pub fn neighbours(vectors: &Vectors, threads: usize) -> Vec<Vec<usize>> {
    let part = vectors.len().div_ceil(threads.max(1)).max(1);
    let mut all = vec![Vec::new(); vectors.len()];
    std::thread::scope(|scope| {
        for (number, answers) in all.chunks_mut(part).enumerate() {
            scope.spawn(move || {
                for (place, answer) in answers.iter_mut().enumerate() {
                    *answer = of(vectors, number * part + place);
                }
            });
        }
    });
    all
}

fn of(vectors: &Vectors, query: usize) -> Vec<usize> {
    // Sorted, the nearest first. Most candidates lose against the last.
    let mut best: Vec<(f32, usize)> = Vec::with_capacity(NEAREST + 1);
    for other in (0..vectors.len()).filter(|other| *other != query) {
        let near = dot(vectors.get(query), vectors.get(other));
        if best.len() == NEAREST && best[NEAREST - 1].0 >= near {
            continue;
        }
        let place = best.partition_point(|(better, _)| *better >= near);
        best.insert(place, (near, other));
        best.truncate(NEAREST);
    }
    best.into_iter().map(|(_, other)| other).collect()
}

/// Which part of what the first finds the second finds too, whatever the order, as the mean over all queries; `None`
/// of nothing found.
pub fn overlap(a: &[Vec<usize>], b: &[Vec<usize>]) -> Option<f64> {
    assert_eq!(a.len(), b.len(), "the same queries");
    let found: usize = a.iter().map(Vec::len).sum();
    let both = a
        .iter()
        .zip(b)
        .map(|(a, b)| a.iter().filter(|at| b.contains(at)).count());
    (found > 0).then(|| both.sum::<usize>() as f64 / found as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vectors(rows: &[Vec<f32>]) -> Vectors {
        let mut vectors = Vectors::new(rows[0].len());
        rows.iter().for_each(|row| vectors.push(row));
        vectors
    }

    #[test]
    fn length_does_not_count_and_a_text_is_not_its_own_neighbour() {
        let circle = [[1.0, 0.0], [9.0, 1.0], [2.0, 1.0], [0.0, 3.0], [-5.0, 0.0]];
        let circle = vectors(&circle.map(Vec::from));
        let found = neighbours(&circle, 2);
        assert_eq!(found[0], [1, 2, 3, 4]);
        assert_eq!(found[3], [2, 1, 0, 4]);
        let (least, mean) = cosines(&circle, &circle).unwrap();
        assert!(
            (least - 1.0).abs() < 1e-7 && (mean - 1.0).abs() < 1e-7,
            "{least} {mean}"
        );
        let turned = vectors(&[[0.0, 1.0], [9.0, 1.0], [2.0, 1.0], [0.0, 3.0], [-5.0, 0.0]].map(Vec::from));
        let (least, mean) = cosines(&circle, &turned).unwrap();
        assert!(least.abs() < 1e-7 && (mean - 0.8).abs() < 1e-7, "{least} {mean}");
    }

    #[test]
    fn overlap_is_the_part_that_both_find() {
        let a = [vec![1, 2, 3, 4], vec![0, 2, 3, 4]];
        assert_eq!(overlap(&a, &[vec![4, 3, 2, 1], vec![9, 8, 7, 0]]), Some(0.625));
        assert_eq!(overlap(&a, &a), Some(1.0));
        assert_eq!(overlap(&[vec![]], &[vec![]]), None);
    }

    proptest! {
        /// Goal: the search finds what sorting everything would find. Method: components of few distinct values, so
        /// that many texts are equally near.
        #[test]
        fn the_nearest_are_those_of_a_full_sort(
            rows in prop::collection::vec(prop::collection::vec(-2i8..=2, 5), 2..40),
            threads in 1usize..5,
        ) {
            let row = |row: &Vec<i8>| {
                let mut row: Vec<f32> = row.iter().map(|n| f32::from(*n)).collect();
                // None is zero.
                row.push(1.0);
                row
            };
            let vectors = vectors(&rows.iter().map(row).collect::<Vec<_>>());
            let found = neighbours(&vectors, threads);
            for (query, found) in found.iter().enumerate() {
                let mut others: Vec<usize> = (0..rows.len()).filter(|other| *other != query).collect();
                let near = |other: usize| dot(vectors.get(query), vectors.get(other));
                others.sort_by(|a, b| near(*b).total_cmp(&near(*a)).then(a.cmp(b)));
                others.truncate(NEAREST);
                prop_assert_eq!(found, &others);
            }
            prop_assert_eq!(overlap(&found, &found), Some(1.0));
        }

        /// Goal: the fast product is the exact one but for rounding, at every length.
        #[test]
        fn the_fast_product_is_right(numbers in prop::collection::vec(-1.0f32..1.0, 1..70)) {
            let other: Vec<f32> = numbers.iter().rev().copied().collect();
            let (fast, exact) = (f64::from(dot(&numbers, &other)), dot_exact(&numbers, &other));
            prop_assert!((fast - exact).abs() < 1e-5, "{} {}", fast, exact);
        }
    }
}
