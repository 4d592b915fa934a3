//! `--search`: keeps the nearest lines of each query while the corpus streams by.

use super::lines::Line;
use std::io::Write;

/// One query and the lines nearest to it so far.
pub struct Search {
    query: String,
    direction: Vec<f32>,
    top: usize,
    /// Best first, at most `top`.
    nearest: Vec<(f32, Line)>,
}

impl Search {
    /// A query by its text and vector.
    pub fn new(query: String, vector: &[f32], top: usize) -> Search {
        Search {
            query,
            direction: vector.to_vec(),
            top,
            nearest: Vec::new(),
        }
    }

    /// Looks at one line. A line as near as another stands behind it.
    pub fn offer(&mut self, line: &Line, vector: &[f32]) {
        let score = cosine(&self.direction, vector);
        let place = self.nearest.partition_point(|(other, _)| *other >= score);
        if place < self.top {
            self.nearest.insert(place, (score, line.clone()));
            self.nearest.truncate(self.top);
        }
    }

    /// Prints the query and its nearest lines, best first.
    pub fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(out, "{}", self.query)?;
        for (score, line) in &self.nearest {
            writeln!(out, "  {score:.3}  {}:{}  {}", line.file, line.number, line.text)?;
        }
        Ok(())
    }
}

/// Cosine of the angle between two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    unit(a).iter().zip(unit(b)).map(|(a, b)| a * b).sum()
}

/// The vector at length one; a zero vector stays as it is, and is near to nothing.
fn unit(vector: &[f32]) -> Vec<f32> {
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
    vector.iter().map(|x| x * scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: order by cosine, not by length, and no more than asked for.
    #[test]
    fn the_nearest_come_first() {
        let mut search = Search::new("q".into(), &[2.0, 0.0], 2);
        for (number, vector) in [[0.0, 9.0], [0.1, 0.1], [5.0, 0.1], [0.0, 0.0]]
            .iter()
            .enumerate()
        {
            let line = Line {
                file: "f".into(),
                number: number as u64 + 1,
                index: 0,
                text: format!("{vector:?}"),
            };
            search.offer(&line, vector);
        }
        let mut shown = Vec::new();
        search.print(&mut shown).unwrap();
        let shown = String::from_utf8(shown).unwrap();
        assert_eq!(shown, "q\n  1.000  f:3  [5.0, 0.1]\n  0.707  f:2  [0.1, 0.1]\n");
    }
}
