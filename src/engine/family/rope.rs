//! What configurations say of rotary positions. Old ones have `rope_theta` and `rope_scaling`, new ones
//! `rope_parameters`, which may differ between kinds of layers. Only plain rotary positions are known.

use crate::engine::LoadError;
use crate::engine::folder::refuse;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// The keys of `config.json`, old and new.
#[derive(Debug, Default, Deserialize)]
pub struct Rope {
    rope_theta: Option<f32>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f32>,
}

impl Rope {
    /// The base of the frequencies of all layers.
    ///
    /// # Errors
    /// A kind of rotary positions that is not known, by name.
    pub fn theta(&self, file: &Path, default: f32) -> Result<f32, LoadError> {
        let old = self.old(file)?.or(self.rope_theta);
        plain(file, "rope_parameters", self.rope_parameters.as_ref())
            .map(|theta| theta.or(old).unwrap_or(default))
    }

    /// The base of the frequencies of layers of a kind such as `sliding_attention`. `old` is what old
    /// configurations say of it, under a key of their own.
    ///
    /// # Errors
    /// A kind of rotary positions that is not known, by name.
    pub fn theta_of(
        &self,
        file: &Path,
        kind: &str,
        old: Option<f32>,
        default: f32,
    ) -> Result<f32, LoadError> {
        if let Some(theta) = self.old(file)? {
            return Err(refuse(file, "rope_scaling.rope_theta", theta, "none here"));
        }
        let all = self.rope_parameters.as_ref().filter(|all| !all.is_null());
        let parameters = all.and_then(|all| all.get(kind));
        if let (Some(all), None) = (all, parameters) {
            let supported = format!("settings for {kind}");
            return Err(refuse(file, "rope_parameters", all, &supported));
        }
        plain(file, &format!("rope_parameters.{kind}"), parameters)
            .map(|theta| theta.or(old).unwrap_or(default))
    }

    /// `rope_theta` of an old configuration.
    pub fn old_theta(&self) -> Option<f32> {
        self.rope_theta
    }

    /// The base that stands in `rope_scaling`, which goes before the one beside it.
    fn old(&self, file: &Path) -> Result<Option<f32>, LoadError> {
        if let Some(part) = self.partial_rotary_factor.filter(|part| *part != 1.0) {
            return Err(refuse(file, "partial_rotary_factor", part, "1"));
        }
        plain(file, "rope_scaling", self.rope_scaling.as_ref())
    }
}

/// The base in `parameters`, if they are of the plain kind or absent.
fn plain(file: &Path, key: &str, parameters: Option<&Value>) -> Result<Option<f32>, LoadError> {
    let Some(parameters) = parameters.filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let kind = parameters.get("rope_type").or_else(|| parameters.get("type"));
    if parameters.is_object() && kind.is_none_or(|kind| kind == "default") {
        if let Some(part) = parameters
            .get("partial_rotary_factor")
            .filter(|part| part.as_f64() != Some(1.0))
        {
            return Err(refuse(file, &format!("{key}.partial_rotary_factor"), part, "1"));
        }
        let settings = parameters.as_object().into_iter().flatten();
        if let Some((kind, value)) = settings.into_iter().find(|(_, value)| value.is_object()) {
            let key = format!("{key}.{kind}");
            return Err(refuse(file, &key, value, "one setting for all layers"));
        }
        let Some(theta) = parameters.get("rope_theta") else {
            return Ok(None);
        };
        return match theta.as_f64().filter(|theta| *theta > 0.0) {
            Some(number) => Ok(Some(number as f32)),
            None => Err(refuse(
                file,
                &format!("{key}.rope_theta"),
                theta,
                "a number above 0",
            )),
        };
    }
    Err(refuse(file, key, parameters, "rope_type default"))
}
