//! What several families ask of their `config.json`.

use crate::engine::LoadError;
use crate::engine::folder::refuse;
use crate::engine::layers::attention::Heads;
use crate::engine::layers::feed_forward::Activation;
use std::path::Path;

/// Refuses sizes that no machine holds or that are zero.
pub fn sizes(file: &Path, sizes: &[(&str, usize, usize)]) -> Result<(), LoadError> {
    for (key, value, most) in sizes {
        if !(1..=*most).contains(value) {
            return Err(refuse(file, key, value, &format!("1 to {most}")));
        }
    }
    Ok(())
}

/// The usual sizes, under the names that most families give them.
pub fn usual_sizes(
    file: &Path,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
) -> Result<(), LoadError> {
    sizes(
        file,
        &[
            ("vocab_size", vocab_size, 1 << 24),
            ("hidden_size", hidden_size, 1 << 16),
            ("num_hidden_layers", num_hidden_layers, 1 << 10),
            ("intermediate_size", intermediate_size, 1 << 18),
            ("max_position_embeddings", max_position_embeddings, 1 << 20),
        ],
    )
}

/// The width of a head, where the heads share a row of `hidden` numbers.
pub fn head_width(file: &Path, key: &str, heads: usize, hidden: usize) -> Result<usize, LoadError> {
    sizes(file, &[(key, heads, hidden)])?;
    if !hidden.is_multiple_of(heads) {
        let supported = format!("a divisor of hidden_size, which is {hidden}");
        return Err(refuse(file, key, heads, &supported));
    }
    Ok(hidden / heads)
}

/// The activation by its name.
pub fn activation(file: &Path, key: &str, name: &str) -> Result<Activation, LoadError> {
    Activation::from_name(name).ok_or_else(|| refuse(file, key, name, Activation::NAMES))
}

/// Refuses a value other than the one that is known; absent is as good.
pub fn only(file: &Path, key: &str, value: Option<&str>, known: &str) -> Result<(), LoadError> {
    match value {
        Some(value) if value != known => Err(refuse(file, key, value, known)),
        _ => Ok(()),
    }
}

/// Refuses a switch that is on.
pub fn off(file: &Path, key: &str, on: bool) -> Result<(), LoadError> {
    if on {
        return Err(refuse(file, key, "true", "false"));
    }
    Ok(())
}

/// As [`head_width`], of a head whose numbers are turned in pairs.
pub fn even_head_width(file: &Path, key: &str, heads: usize, hidden: usize) -> Result<usize, LoadError> {
    let width = head_width(file, key, heads, hidden)?;
    if !width.is_multiple_of(2) {
        return Err(refuse(file, key, heads, "one that leaves heads of an even width"));
    }
    Ok(width)
}

/// Refuses heads of keys that cannot be shared out among those of the queries, and heads of an odd width.
pub fn shared_heads(file: &Path, heads: Heads) -> Result<(), LoadError> {
    let Heads { queries, keys, width } = heads;
    sizes(
        file,
        &[
            ("num_attention_heads", queries, 1 << 10),
            ("num_key_value_heads", keys, queries),
            ("head_dim", width, 1 << 12),
        ],
    )?;
    if !queries.is_multiple_of(keys) {
        let supported = format!("a divisor of num_attention_heads, which is {queries}");
        return Err(refuse(file, "num_key_value_heads", keys, &supported));
    }
    if !width.is_multiple_of(2) {
        return Err(refuse(file, "head_dim", width, "an even number"));
    }
    Ok(())
}
