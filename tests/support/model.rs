//! Where the tests find the real model.

use std::path::{Path, PathBuf};

/// The folder of all-MiniLM-L6-v2.
pub fn minilm() -> PathBuf {
    let folder = match std::env::var_os("EMBEDDINGS_TEST_MODEL") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/models/all-MiniLM-L6-v2"),
    };
    assert!(
        folder.join("modules.json").exists(),
        "no model in {}; see EMBEDDINGS_TEST_MODEL",
        folder.display()
    );
    folder
}
