//! What a start finds wrong behind the configuration's own check: a file that is named and cannot be read, a model that is
//! not there or cannot be what is asked of it. Said like all else that is wrong with it: who set it, the key, the value.

use super::catalogue::CatalogueError;
use crate::config::{Loaded, ModelDirError, Origin};
use crate::engine::LoadError;
use crate::engine::device::ChoiceError;

/// A file that a key names is of no use. It is found again however often it is tried.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadFile(String);

/// The token that HTTP asks for, from its file.
///
/// # Errors
/// It cannot be had.
pub fn token(loaded: &Loaded) -> Result<Option<String>, BadFile> {
    let token = loaded.config.http.read_token();
    token.map_err(|problem| {
        let origin = origin(loaded, "http.token_file");
        BadFile(format!("{origin}: http.token_file = {problem}"))
    })
}

/// The roots of TLS can be read now. What they are is looked at for each connection anew, as the file may be renewed.
///
/// # Errors
/// They cannot: no connection would ever come of it, and waiting looks as if the broker were away.
pub fn roots(loaded: &Loaded) -> Result<(), BadFile> {
    let Some(path) = &loaded.config.broker.ca_file else {
        return Ok(());
    };
    std::fs::read_to_string(path).map(drop).map_err(|error| {
        let (origin, path) = (origin(loaded, "broker.ca_file"), path.display());
        BadFile(format!(
            "{origin}: broker.ca_file = \"{path}\": failed to read: {error}; must be a file of certificates in PEM"
        ))
    })
}

/// The failure with who set the value at fault, which key that is, and what it may be; as it is where a file of the model's is at
/// fault, which it names.
pub fn words(failure: &anyhow::Error, loaded: &Loaded) -> String {
    let blamed = failure.downcast_ref().and_then(|failure| blamed(failure, loaded));
    blamed.unwrap_or_else(|| format!("{failure:#}"))
}

fn blamed(failure: &CatalogueError, loaded: &Loaded) -> Option<String> {
    let said = |key: String, problem: String| {
        let value = value(loaded, &key);
        format!("{}: {key} = {value}: {problem}", origin(loaded, &key))
    };
    Some(match failure {
        CatalogueError::Folder(error @ ModelDirError::NotInstalled { name, .. }) => {
            let path = format!("models.{name:?}.path");
            let problem = format!("{error}; must be the name of a folder there, or {path} the folder itself");
            if *name == loaded.config.default_model {
                return Some(said("default_model".to_owned(), problem));
            }
            // The section is at fault for being there; who set any of it wrote it.
            let above = format!("models.{name:?}.");
            let of_section = |key: &str| key.starts_with(&above);
            let set = (loaded.sources.iter())
                .find(|setting| of_section(&setting.key) && setting.origin != Origin::Default)?;
            format!("{}: [models.{name:?}]: {problem}", set.origin)
        }
        CatalogueError::Folder(error @ ModelDirError::Path { name, .. }) => {
            let origin = origin(loaded, &format!("models.{name:?}.path"));
            format!("{origin}: {error}; must be one that has")
        }
        CatalogueError::Load {
            name,
            why: LoadError::Choice(choice),
        } => {
            let key = match choice {
                ChoiceError::Precision { .. } => "precision",
                ChoiceError::Build { .. } | ChoiceError::Libraries { .. } => "device",
            };
            said(format!("models.{name:?}.{key}"), choice.to_string())
        }
        _ => return None,
    })
}

fn origin(loaded: &Loaded, key: &str) -> Origin {
    let setting = loaded.sources.iter().find(|setting| setting.key == key);
    setting.map_or(Origin::Default, |setting| setting.origin.clone())
}

fn value(loaded: &Loaded, key: &str) -> String {
    let setting = loaded.sources.iter().find(|setting| setting.key == key);
    setting.map_or_else(String::new, |setting| setting.value.to_string())
}
