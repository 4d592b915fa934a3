//! What a token is before the first layer: its word, and where the family has them its position and its type.

use super::norm::Norm;
use crate::engine::kernel::Arch;
use crate::engine::weights::Tensors;
use crate::engine::{LoadError, Sequence};
use std::sync::Arc;

/// Which row of the table of positions a token takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Places {
    /// Counted from 0.
    FromZero,
    /// RoBERTa's count: the padding token has place `pad` wherever it stands, even written out in a text, and
    /// the other tokens have the places from `pad + 1` on.
    Behind {
        /// The padding token.
        pad: u32,
    },
}

impl Places {
    /// Longest sequence that a table of `positions` rows has places for.
    pub fn of(self, positions: usize) -> usize {
        match self {
            Places::FromZero => positions,
            Places::Behind { pad } => positions.saturating_sub(pad as usize + 1),
        }
    }

    /// The row for token `id`, behind so many that were `counted`, which is counted on.
    pub fn next(self, id: u32, counted: &mut usize) -> usize {
        match self {
            Places::Behind { pad } if id == pad => return pad as usize,
            _ => *counted += 1,
        }
        match self {
            Places::FromZero => *counted - 1,
            Places::Behind { pad } => pad as usize + *counted,
        }
    }
}

/// A table of learned positions.
#[derive(Debug)]
struct Positions {
    places: Places,
    rows: Vec<f32>,
}

/// What an [`Embedding`] is made of.
pub struct Tables {
    /// A row for each token.
    pub words: Vec<f32>,
    /// A row for each position, and which of them a token takes.
    pub positions: Option<(Places, Vec<f32>)>,
    /// Behind the sum.
    pub norm: Option<Norm>,
}

/// The tables in which a token is looked up, and the norm of their sum.
#[derive(Debug)]
pub struct Embedding {
    width: usize,
    words: Arc<Vec<f32>>,
    /// With the embedding of token type 0 added, the only one a single text has.
    positions: Option<Positions>,
    norm: Option<Norm>,
}

impl Embedding {
    /// Reads `name.weight`, each number times `scale`.
    ///
    /// # Errors
    /// A tensor is missing, misshapen or damaged.
    pub fn words(
        tensors: &Tensors<'_>,
        name: &str,
        count: usize,
        width: usize,
        scale: f32,
    ) -> Result<Embedding, LoadError> {
        Ok(Embedding {
            width,
            words: tensors.table(&format!("{name}.weight"), count, width, scale)?,
            positions: None,
            norm: None,
        })
    }

    /// Adds learned positions.
    ///
    /// # Errors
    /// A tensor is missing, misshapen or damaged.
    pub fn positions(
        mut self,
        tensors: &Tensors<'_>,
        name: &str,
        count: usize,
        places: Places,
    ) -> Result<Embedding, LoadError> {
        tensors.expect(&format!("{name}.weight"), &[count, self.width])?;
        let mut rows = Vec::with_capacity(count * self.width);
        tensors.rows(&format!("{name}.weight"), &[count, self.width], &mut |_, row| {
            rows.extend_from_slice(row);
        })?;
        self.positions = Some(Positions { places, rows });
        Ok(self)
    }

    /// Adds the embedding of token type 0, of `count` types, to the positions, or to the words where there are none.
    ///
    /// # Errors
    /// A tensor is missing, misshapen or damaged.
    pub fn types(mut self, tensors: &Tensors<'_>, name: &str, count: usize) -> Result<Embedding, LoadError> {
        let mut kind = Vec::new();
        tensors.rows(
            &format!("{name}.weight"),
            &[count, self.width],
            &mut |index, row| {
                if index == 0 {
                    kind.extend_from_slice(row);
                }
            },
        )?;
        let table = match &mut self.positions {
            Some(positions) => &mut positions.rows,
            None => Arc::make_mut(&mut self.words),
        };
        for row in table.chunks_exact_mut(self.width) {
            row.iter_mut().zip(&kind).for_each(|(value, more)| *value += more);
        }
        Ok(self)
    }

    /// Adds a norm behind the sum.
    pub fn norm(mut self, norm: Norm) -> Embedding {
        self.norm = Some(norm);
        self
    }

    /// Numbers of a token's row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Tokens in the table of words.
    pub fn count(&self) -> usize {
        self.words.len() / self.width
    }

    /// The tables by themselves.
    pub fn tables(self) -> Tables {
        Tables {
            words: Arc::unwrap_or_clone(self.words),
            positions: self.positions.map(|table| (table.places, table.rows)),
            norm: self.norm,
        }
    }

    /// Writes a row for each token of the batch, sequence after sequence.
    pub fn run(&self, arch: Arch, batch: &[&Sequence], hidden: &mut [f32]) {
        let width = self.width;
        let mut rows = hidden.chunks_exact_mut(width);
        for sequence in batch {
            let mut counted = 0;
            for (id, row) in sequence.ids.iter().zip(&mut rows) {
                let word = &self.words[*id as usize * width..][..width];
                let Some(positions) = &self.positions else {
                    row.copy_from_slice(word);
                    continue;
                };
                let place = positions.places.next(*id, &mut counted);
                let position = &positions.rows[place * width..][..width];
                for ((out, word), position) in row.iter_mut().zip(word).zip(position) {
                    *out = word + position;
                }
            }
        }
        if let Some(norm) = &self.norm {
            norm.run(arch, hidden, None);
        }
    }
}
