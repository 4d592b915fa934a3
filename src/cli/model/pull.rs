//! `embeddings model pull`: a model from the Hugging Face Hub, resumable, checked, installed whole or not at all.

use super::folder::Layout;
use super::hub::{Hub, Listing};
use super::install::{self, Source};
use super::remote::{Remote, sha256, verify};
use super::{inspect, installed, vet};
use crate::args::ConfigFlags;
use crate::cli::{configuration, print};
use anyhow::{Context, bail, ensure};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

/// The file whose checksum `--sha256` names.
const WEIGHTS: &str = "model.safetensors";

/// Runs the command.
///
/// # Errors
/// A bad configuration, a model that cannot be had, or one that is not what was asked for.
pub fn run(
    id: &str,
    wanted_sha256: Option<&str>,
    name: Option<&str>,
    replace: bool,
    flags: &ConfigFlags,
) -> anyhow::Result<ExitCode> {
    let (id, revision) = parse(id)?;
    let wanted_sha256 = wanted_sha256.map(checksum).transpose()?;
    let config = configuration(flags)?.config;
    let name = name.unwrap_or_else(|| id.rsplit('/').next().unwrap_or(id));
    let models = config.dirs.state.join("models");
    install::place(&models, name, true)?;

    let hub = Hub::new(&config.dirs.cache, id, revision)?;
    let listing = match hub.reach() {
        Ok(()) => fetch_all(&hub, wanted_sha256.as_deref())?,
        Err(unreachable) => match hub.remembered() {
            Some(listing) => {
                eprintln!("warning: {unreachable:#}; using what an earlier pull left in the cache");
                listing
            }
            None => {
                return Err(
                    unreachable.context(format!("{id} is not in the cache, and it cannot be fetched"))
                );
            }
        },
    };
    let folder = hub.folder(&listing.commit);
    check_all(&folder, &listing, wanted_sha256.as_deref())?;
    hub.remember(&listing).context("failed to write to the cache")?;

    let source = Source {
        from: id.to_owned(),
        commit: Some(listing.commit.clone()),
    };
    let target = models.join(name);
    if !replace && Source::read(&target).as_ref() == Some(&source) {
        check_all(&target, &listing, wanted_sha256.as_deref())
            .with_context(|| format!("{name} is installed already, and damaged; --replace replaces it"))?;
        print(&format!(
            "{name} is installed already, from commit {}, in {}\n",
            listing.commit,
            target.display()
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let facts = inspect(&folder)?;
    vet(&folder)?;
    let target = install::install(&folder, &facts.files, &models, name, replace, &source)?;
    print(&installed(name, &facts, &target))?;
    Ok(ExitCode::SUCCESS)
}

/// `ID` or `ID@REVISION`, both of characters that a path and a URL hold as they are.
fn parse(text: &str) -> anyhow::Result<(&str, &str)> {
    let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
    let plain = |part: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        !part.is_empty() && part.len() <= 100 && part.bytes().all(allowed) && !part.starts_with('.')
    };
    ensure!(
        (1..=2).contains(&id.split('/').count()) && id.split('/').all(plain),
        "{id:?} is no ID of the Hub, such as sentence-transformers/all-MiniLM-L6-v2"
    );
    ensure!(
        revision.split('/').all(plain),
        "{revision:?} is no branch, tag or commit"
    );
    Ok((id, revision))
}

fn checksum(text: &str) -> anyhow::Result<String> {
    ensure!(
        text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "--sha256 {text:?} must be 64 hexadecimal digits"
    );
    Ok(text.to_lowercase())
}

/// Brings all files that the model needs into the cache.
fn fetch_all(hub: &Hub, wanted_sha256: Option<&str>) -> anyhow::Result<Listing> {
    let mut listing = hub.listing()?;
    let commit = listing.commit.clone();
    let Some(modules) = listing.files.iter_mut().find(|file| file.name == "modules.json") else {
        bail!("it has no modules.json: not a sentence-transformers model");
    };
    let path = hub.fetch(&commit, modules, &ProgressBar::hidden(), 0)?;
    let layout = Layout::parse(&std::fs::read_to_string(&path)?)?;
    let all: Vec<String> = listing.files.iter().map(|file| file.name.clone()).collect();
    let needed = layout.pick(&all);
    listing.files.retain(|file| needed.contains(&file.name));
    ensure!(
        needed.iter().any(|name| name.ends_with(".safetensors")),
        "it has no *.safetensors: only other formats of weights, which are not read"
    );
    // Where the Hub knows the checksum, a wrong one is refused before a byte of the weights is fetched.
    let weights = listing
        .files
        .iter()
        .find(|file| file.name.rsplit('/').next() == Some(WEIGHTS));
    if let (Some(wanted), Some(known)) = (wanted_sha256, weights.and_then(|file| file.sha256.as_deref())) {
        refuse_unless(wanted, known)?;
    }
    let total = listing.files.iter().filter_map(|file| file.size).sum();
    let bar = ProgressBar::new(total);
    bar.set_style(
        ProgressStyle::with_template("{msg:30!} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
            .context("the style of the bar")?,
    );
    let terminal = std::io::stderr().is_terminal();
    let mut before = 0;
    for file in &mut listing.files {
        bar.set_message(file.name.clone());
        if !terminal {
            let size = file
                .size
                .map(|size| format!(" ({})", HumanBytes(size)))
                .unwrap_or_default();
            eprintln!("fetching {}{size}", file.name);
        }
        hub.fetch(&commit, file, &bar, before)?;
        before += file.size.unwrap_or(0);
        bar.set_position(before);
    }
    bar.finish_and_clear();
    Ok(listing)
}

/// Checks every file of a folder against the listing, and the weights against what the caller asked for.
fn check_all(folder: &Path, listing: &Listing, wanted_sha256: Option<&str>) -> anyhow::Result<()> {
    for file in &listing.files {
        verify(&folder.join(&file.name), file)?;
    }
    let Some(wanted) = wanted_sha256 else {
        return Ok(());
    };
    let of_weights = |file: &&Remote| file.name.rsplit('/').next() == Some(WEIGHTS);
    let weights = listing.files.iter().find(of_weights);
    let weights = weights.with_context(|| format!("--sha256 is for {WEIGHTS}, which this model has not"))?;
    refuse_unless(wanted, &sha256(&folder.join(&weights.name))?)
}

fn refuse_unless(wanted: &str, found: &str) -> anyhow::Result<()> {
    ensure!(
        wanted == found,
        "{WEIGHTS} has sha256 {found}, --sha256 asks for {wanted}; nothing is installed"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_revisions_cannot_lead_elsewhere() {
        assert_eq!(parse("org/model").unwrap(), ("org/model", "main"));
        assert_eq!(parse("model@refs/pr/1").unwrap(), ("model", "refs/pr/1"));
        for bad in [
            "",
            "a/b/c",
            "../x",
            "org/",
            "org/../x",
            "a b",
            "org/model@",
            "org/model@../x",
            "org/model@a//b",
            "o?/m",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(checksum("abc").is_err());
        assert_eq!(checksum(&"AB".repeat(32)).unwrap(), "ab".repeat(32));
    }
}
