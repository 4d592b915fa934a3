//! A sentence-transformers folder seen from outside: which files it needs, and whether they look sound.
//! No weights are loaded; that is the engine's part.

use crate::engine::{Model, SENTENCE_CONFIGS};
use anyhow::{Context, bail, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

/// Longest header of a weights file that is read: a corrupt length must not ask for all memory.
/// The safetensors format itself allows 100 MB.
const HEADER_MAX: u64 = 100_000_000;

/// Files beside the weights that a module's folder may need.
const SMALL_FILES: [&str; 11] = [
    // So that it is refused.
    "adapter_config.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
];

/// The weights of a module, where they are one file.
pub const WEIGHTS: &str = "model.safetensors";
/// What names their files, where they are several.
const INDEX: &str = "model.safetensors.index.json";

/// The modules that `modules.json` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Kind (`Transformer`, `Pooling`, `Dense`, …) and folder (empty for the model's own) of each module.
    modules: Vec<(String, String)>,
}

/// What a folder says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `model_type` of the transformer, such as `bert`.
    pub architecture: String,
    /// Numbers of a vector, if the engine knows the model.
    pub dimensions: Option<usize>,
    /// Bytes of the files it needs.
    pub bytes: u64,
    /// The files it needs, relative to it.
    pub files: Vec<String>,
}

impl Layout {
    /// Reads `modules.json`. A module's folder must lie inside the model's.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> anyhow::Result<Layout> {
        let modules: Vec<Value> = serde_json::from_str(text).context("modules.json is no list of modules")?;
        let mut found = Vec::new();
        for module in &modules {
            let kind = module["type"]
                .as_str()
                .context("modules.json has a module without a type")?;
            let path = module["path"].as_str().unwrap_or_default();
            let mut folder = Vec::new();
            for part in Path::new(path).components() {
                match part {
                    Component::Normal(part) => folder.push(part.to_string_lossy()),
                    Component::CurDir => {}
                    _ => bail!("modules.json names the folder {path:?}, which is not inside the model"),
                }
            }
            found.push((
                kind.rsplit('.').next().unwrap_or(kind).to_owned(),
                folder.join("/"),
            ));
        }
        ensure!(
            found.iter().any(|(kind, _)| kind == "Transformer"),
            "modules.json names no Transformer: not a text embedding model that this service runs"
        );
        Ok(Layout { modules: found })
    }

    /// The transformer's folder.
    fn transformer(&self) -> &str {
        let found = self.modules.iter().find(|(kind, _)| kind == "Transformer");
        found.map_or("", |(_, folder)| folder.as_str())
    }

    /// The transformer's weights, where they are one file.
    pub fn weights(&self) -> String {
        within(self.transformer(), WEIGHTS)
    }

    /// Of all files of a model, those that it needs.
    pub fn pick(&self, all: &[String]) -> Vec<String> {
        let wanted = |file: &String| {
            let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
            if folder.is_empty() && matches!(name, "modules.json" | "config_sentence_transformers.json") {
                return true;
            }
            if !self.modules.iter().any(|(_, module)| module == folder) {
                return false;
            }
            let in_parts = !all.contains(&within(folder, WEIGHTS));
            match name {
                WEIGHTS => true,
                INDEX => in_parts,
                name if name.ends_with(".safetensors") => in_parts,
                name => SMALL_FILES.contains(&name) || SENTENCE_CONFIGS.contains(&name),
            }
        };
        all.iter().filter(|file| wanted(file)).cloned().collect()
    }

    /// Whether each module that has weights has them among these files, in the one format that is read.
    ///
    /// # Errors
    /// The first module that has none.
    pub fn check_weights(&self, files: &[String]) -> anyhow::Result<()> {
        for (kind, folder) in &self.modules {
            let there = |file: &String| {
                let (own, name) = file.rsplit_once('/').unwrap_or(("", file));
                own == folder && name.ends_with(".safetensors")
            };
            if !matches!(kind.as_str(), "Transformer" | "Dense") {
                continue;
            }
            let place = match folder.as_str() {
                "" => String::new(),
                folder => format!(" in {folder}"),
            };
            ensure!(
                files.iter().any(there),
                "its module {kind}{place} has no *.safetensors: other formats of weights are not read"
            );
            let read = [WEIGHTS, INDEX].map(|name| within(folder, name));
            ensure!(
                read.iter().any(|name| files.contains(name)),
                "its module {kind}{place} has neither {WEIGHTS} nor {INDEX}: weights of other names are not read"
            );
        }
        Ok(())
    }
}

/// A file of a module's folder, relative to the model.
fn within(folder: &str, name: &str) -> String {
    match folder {
        "" => name.to_owned(),
        folder => format!("{folder}/{name}"),
    }
}

/// The weights' files that an index in the model's folder `index` names, relative to the model.
///
/// # Errors
/// The text is no index, or it names a file elsewhere.
pub fn parts(index: &str, text: &str) -> anyhow::Result<BTreeSet<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let map: Index = serde_json::from_str(text).with_context(|| format!("{index} is no index of weights"))?;
    let folder = index.rsplit_once('/').map(|(folder, _)| format!("{folder}/"));
    let mut found = BTreeSet::new();
    for name in map.weight_map.into_values() {
        ensure!(
            name.ends_with(".safetensors") && !name.contains(['/', '\\']) && !name.starts_with('.'),
            "{index} names the file {name:?}, which is no part beside it"
        );
        found.insert(format!("{}{name}", folder.as_deref().unwrap_or_default()));
    }
    Ok(found)
}

/// Checks a folder and says what it is.
///
/// # Errors
/// The first file that is missing or damaged.
pub fn inspect(dir: &Path) -> anyhow::Result<Facts> {
    ensure!(dir.is_dir(), "{} is no folder", dir.display());
    let read = |name: &Path| {
        std::fs::read_to_string(dir.join(name))
            .with_context(|| format!("failed to read {}", dir.join(name).display()))
    };
    ensure!(
        dir.join("modules.json").is_file(),
        "{} has no modules.json: not a sentence-transformers folder",
        dir.display()
    );
    let layout =
        Layout::parse(&read(Path::new("modules.json"))?).with_context(|| dir.display().to_string())?;
    let mut all = Vec::new();
    list(dir, "", &mut all).with_context(|| format!("failed to list {}", dir.display()))?;
    all.sort();
    let files = layout.pick(&all);
    let transformer = Path::new(layout.transformer());
    let config: Value =
        serde_json::from_str(&read(&transformer.join("config.json"))?).with_context(|| {
            format!(
                "{} is not JSON",
                dir.join(transformer).join("config.json").display()
            )
        })?;
    let architecture = config["model_type"]
        .as_str()
        .context("config.json names no model_type")?
        .to_owned();
    for (kind, folder) in &layout.modules {
        if matches!(kind.as_str(), "Dense" | "Pooling") {
            read(&Path::new(folder).join("config.json"))?;
        }
    }
    ensure!(
        dir.join(transformer).join("tokenizer.json").is_file(),
        "{} has no tokenizer.json",
        dir.join(transformer).display()
    );
    let weights: Vec<&String> = files
        .iter()
        .filter(|file| file.ends_with(".safetensors"))
        .collect();
    layout
        .check_weights(&files)
        .with_context(|| dir.display().to_string())?;
    for index in files.iter().filter(|file| file.ends_with(INDEX)) {
        let named = parts(index, &read(Path::new(index))?).with_context(|| dir.display().to_string())?;
        if let Some(part) = named.iter().find(|part| !all.contains(part)) {
            bail!("{}: its {index} names {part}, which is not there", dir.display());
        }
    }
    for file in weights {
        whole(&dir.join(file)).with_context(|| dir.join(file).display().to_string())?;
    }
    let mut bytes = 0;
    for file in &files {
        bytes += std::fs::metadata(dir.join(file))
            .with_context(|| dir.join(file).display().to_string())?
            .len();
    }
    Ok(Facts {
        architecture,
        dimensions: Model::dimensions(dir).ok(),
        bytes,
        files,
    })
}

/// Lists files, relative, at most two folders deep: deeper lies nothing that a model needs.
fn list(dir: &Path, above: &str, all: &mut Vec<String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir.join(above))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let relative = if above.is_empty() {
            name
        } else {
            format!("{above}/{name}")
        };
        // Follows links: the Hub's own cache is made of them.
        let Ok(of) = std::fs::metadata(entry.path()) else {
            continue;
        };
        if of.is_dir() && relative.matches('/').count() < 2 {
            list(dir, &relative, all)?;
        } else if of.is_file() {
            all.push(relative);
        }
    }
    Ok(())
}

/// Whether a weights file is as long as its header says.
fn whole(path: &Path) -> anyhow::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut prefix = [0u8; 8];
    file.read_exact(&mut prefix)
        .context("is shorter than a safetensors header")?;
    if prefix == *b"version " {
        bail!("is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`");
    }
    let header = u64::from_le_bytes(prefix);
    ensure!(
        header <= HEADER_MAX && header + 8 <= length,
        "is no safetensors file, or is cut off"
    );
    let mut text = Vec::new();
    file.take(header).read_to_end(&mut text)?;
    let header_json: serde_json::Map<String, Value> =
        serde_json::from_slice(&text).context("is no safetensors file: its header is not JSON")?;
    let ends = header_json
        .values()
        .filter_map(|tensor| tensor["data_offsets"][1].as_u64());
    let expected = 8 + header + ends.max().unwrap_or(0);
    ensure!(
        length == expected,
        "has {length} bytes, its header says {expected}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_modules_need_is_picked() {
        let layout = Layout::parse(
            r#"[{"idx":0,"path":"","type":"sentence_transformers.models.Transformer"},
                {"idx":1,"path":"1_Pooling","type":"sentence_transformers.models.Pooling"}]"#,
        )
        .unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let all = names(&[
            ".gitattributes",
            "1_Pooling/config.json",
            "README.md",
            "config.json",
            "modules.json",
            "onnx/model.onnx",
            "model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
            "0_Other/config.json",
            "x.safetensors",
        ]);
        let expected = names(&[
            "1_Pooling/config.json",
            "config.json",
            "modules.json",
            "model.safetensors",
            "tokenizer.json",
        ]);
        assert_eq!(layout.pick(&all), expected);
        let parts = names(&[
            "model-1-of-2.safetensors",
            "model-2-of-2.safetensors",
            "model.safetensors.index.json",
        ]);
        assert_eq!(layout.pick(&parts), parts);
    }

    /// A copy that was cut off was installed, and replaced one that was whole.
    #[test]
    fn weights_that_are_not_all_there_are_refused() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cls");
        let dir = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        list(&golden, "", &mut files).unwrap();
        for file in files {
            let to = dir.path().join(&file);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(golden.join(&file), to).unwrap();
        }
        assert!(inspect(dir.path()).is_ok());
        let refused = || format!("{:#}", inspect(dir.path()).unwrap_err());
        let first = dir.path().join("model-00001-of-00002.safetensors");
        std::fs::rename(dir.path().join(WEIGHTS), &first).unwrap();
        assert!(
            refused().contains("has neither model.safetensors nor"),
            "{}",
            refused()
        );
        let named = [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        let index = serde_json::json!({"weight_map": {"a": named[0], "b": named[1]}});
        std::fs::write(dir.path().join(INDEX), index.to_string()).unwrap();
        let why = "model.safetensors.index.json names model-00002-of-00002.safetensors, which is not there";
        assert!(refused().contains(why), "{}", refused());
        std::fs::copy(&first, dir.path().join(named[1])).unwrap();
        assert!(inspect(dir.path()).is_ok());
    }

    #[test]
    fn a_module_outside_the_folder_is_refused() {
        for path in ["../../etc", "/etc", "a/../../b"] {
            let text = format!(r#"[{{"path":"{path}","type":"x.Transformer"}}]"#);
            assert!(
                Layout::parse(&text)
                    .unwrap_err()
                    .to_string()
                    .contains("not inside"),
                "{path}"
            );
        }
        assert!(
            Layout::parse("[]")
                .unwrap_err()
                .to_string()
                .contains("no Transformer")
        );
    }
}
