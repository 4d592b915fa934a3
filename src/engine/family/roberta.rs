//! RoBERTa (Liu and others, 2019), XLM-RoBERTa and CamemBERT: BERT, with places counted from behind the number of
//! the padding token.

use super::{Family, bert};
use crate::engine::LoadError;
use std::path::Path;

/// Reads and checks `config.json`.
pub fn read(file: &Path, text: &str) -> Result<Box<dyn Family>, LoadError> {
    bert::read_as(file, text, "roberta.", true)
}
