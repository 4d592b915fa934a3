//! `embeddings model pull`: a model from the Hugging Face Hub, resumable, checked, installed whole or not at all.

use super::cache::Listing;
use super::folder::{self, Layout, WEIGHTS};
use super::hub::Hub;
use super::install::{self, Source};
use super::remote::{Remote, sha256, verify};
use super::room::room;
use super::wire::Fault;
use super::{inspect, installed, vet};
use crate::args::ConfigFlags;
use crate::cli::{configuration, print};
use anyhow::{Context, bail, ensure};
use std::path::Path;
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// A bad configuration, a model that cannot be had, or one that is not what was asked for.
pub fn run(
    id: &str,
    wanted_sha256: Option<&str>,
    name: Option<&str>,
    replace: bool,
    as_json: bool,
    flags: &ConfigFlags,
) -> anyhow::Result<ExitCode> {
    let (id, revision) = parse(id)?;
    let wanted_sha256 = wanted_sha256.map(checksum).transpose()?;
    let config = configuration(flags)?.config;
    let name = name.unwrap_or_else(|| id.rsplit('/').next().unwrap_or(id));
    let models = config.dirs.state.join("models");
    install::place(&models, name, true)?;

    let hub = Hub::new(&config.dirs.cache, id, revision)?;
    // Two commands at once would fetch the same twice; the second finds all of it there.
    let _lock = hub.cache.lock()?;
    let target = models.join(name);
    let source_of = |listing: &Listing| Source {
        from: id.to_owned(),
        commit: Some(listing.commit.clone()),
    };
    let is_there = |listing: &Listing| Source::read(&target).as_ref() == Some(&source_of(listing));
    let listing = obtain(
        &hub,
        id,
        revision,
        &config.dirs.cache,
        &models,
        wanted_sha256.as_deref(),
        &|listing| match is_there(listing) {
            true => Ok(()),
            false => install::place(&models, name, replace).map(drop),
        },
    )?;
    let folder = hub.cache.folder(&listing.commit);
    hub.cache
        .remember(revision, &listing)
        .context("failed to write to the cache")?;

    let source = source_of(&listing);
    if !replace && is_there(&listing) {
        check_all(&target, &listing, wanted_sha256.as_deref())
            .with_context(|| format!("{name} is installed already, and damaged; --replace replaces it"))?;
        let answer = format!(
            "{name} is installed already, from commit {}, in {}\n",
            listing.commit,
            target.display()
        );
        print(&match as_json {
            true => installed(name, &inspect(&target)?, &target, &source, true),
            false => answer,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let facts = inspect(&folder)?;
    vet(&folder)?;
    let target = install::install(&folder, &facts.files, &models, name, replace, &source)?;
    print(&installed(name, &facts, &target, &source, as_json))?;
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

/// Has all files that the model needs in the cache, checked: from an earlier pull where that is sure to be the same,
/// from the Hub, or from an earlier pull because the Hub cannot be asked. `vacant` is asked for its place before anything is fetched.
fn obtain(
    hub: &Hub,
    id: &str,
    revision: &str,
    cache: &Path,
    models: &Path,
    wanted_sha256: Option<&str>,
    vacant: &dyn Fn(&Listing) -> anyhow::Result<()>,
) -> anyhow::Result<Listing> {
    let remembered = hub.cache.remembered(revision);
    let check = |listing: &Listing| check_all(&hub.cache.folder(&listing.commit), listing, wanted_sha256);
    let refusal = if Hub::is_offline() {
        anyhow::anyhow!("HF_HUB_OFFLINE is set")
    } else {
        if hub.is_pinned()
            && let Some(listing) = &remembered
            && check(listing).is_ok()
        {
            return Ok(listing.clone());
        }
        match hub.listing() {
            Ok(listing) => {
                vacant(&listing)?;
                return fetch_all(hub, listing, wanted_sha256, &|cached, installed| {
                    room(cache, cached, models, installed)
                });
            }
            Err(error) if error.downcast_ref::<Fault>().is_some_and(Fault::may_pass) => error,
            Err(error) => return Err(error),
        }
    };
    let Some(listing) = remembered else {
        return Err(refusal.context(format!("{id} is not in the cache, and it cannot be fetched")));
    };
    tell!("warning: {refusal:#}; using what an earlier pull left in the cache");
    check(&listing)?;
    Ok(listing)
}

/// Brings all files that the model needs into the cache. `room` is asked for bytes in the cache and beside the models.
fn fetch_all(
    hub: &Hub,
    mut listing: Listing,
    wanted_sha256: Option<&str>,
    room: &dyn Fn(u64, u64) -> anyhow::Result<()>,
) -> anyhow::Result<Listing> {
    let commit = listing.commit.clone();
    let dir = hub.cache.folder(&commit);
    let small = |bytes| room(bytes, 0);
    let Some(modules) = listing.files.iter_mut().find(|file| file.name == "modules.json") else {
        bail!("it has no modules.json: not a sentence-transformers model");
    };
    hub.fetch(&commit, std::slice::from_mut(modules), &small)?;
    let layout = Layout::parse(&std::fs::read_to_string(dir.join("modules.json"))?)?;
    let names = |listing: &Listing| {
        listing
            .files
            .iter()
            .map(|file| file.name.clone())
            .collect::<Vec<_>>()
    };
    let needed = layout.pick(&names(&listing));
    listing.files.retain(|file| needed.contains(&file.name));
    // An index says which parts there are; others that lie beside them belong to another program.
    for index in needed.iter().filter(|name| name.ends_with(".index.json")) {
        let file = listing.files.iter_mut().filter(|file| file.name == *index);
        for file in file {
            hub.fetch(&commit, std::slice::from_mut(file), &small)?;
        }
        let parts = folder::parts(index, &std::fs::read_to_string(dir.join(index))?)?;
        let beside = |name: &str| Path::new(name).parent() == Path::new(index).parent();
        listing.files.retain(|file| {
            !file.name.ends_with(".safetensors") || !beside(&file.name) || parts.contains(&file.name)
        });
        let there = names(&listing);
        if let Some(part) = parts.iter().find(|part| !there.contains(part)) {
            bail!("its {index} names {part}, which it has not");
        }
    }
    layout.check_weights(&names(&listing))?;
    // Where the Hub knows the checksum, a wrong one is refused before a byte of the weights is fetched.
    if let Some(wanted) = wanted_sha256
        && let Some(known) = &weights(&layout, &listing)?.sha256
    {
        refuse_unless(wanted, known)?;
    }
    let all = listing
        .files
        .iter()
        .fold(0u64, |sum, file| sum.saturating_add(file.size.unwrap_or(0)));
    hub.fetch(&commit, &mut listing.files, &|bytes| room(bytes, all))?;
    check_weights(&dir, &listing, wanted_sha256)?;
    Ok(listing)
}

/// Checks every file of a folder against the listing, and the weights against what the caller asked for.
fn check_all(folder: &Path, listing: &Listing, wanted_sha256: Option<&str>) -> anyhow::Result<()> {
    for file in &listing.files {
        verify(&folder.join(&file.name), file)?;
    }
    check_weights(folder, listing, wanted_sha256)
}

fn check_weights(folder: &Path, listing: &Listing, wanted_sha256: Option<&str>) -> anyhow::Result<()> {
    let Some(wanted) = wanted_sha256 else {
        return Ok(());
    };
    let layout = Layout::parse(&std::fs::read_to_string(folder.join("modules.json"))?)?;
    refuse_unless(wanted, &sha256(&folder.join(&weights(&layout, listing)?.name))?)
}

/// The transformer's weights, which are what `--sha256` is for: a Dense module has a file of the same name.
fn weights<'a>(layout: &Layout, listing: &'a Listing) -> anyhow::Result<&'a Remote> {
    let name = layout.weights();
    let found = listing.files.iter().find(|file| file.name == name);
    found.with_context(|| format!("--sha256 is for {name}, which this model has not"))
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
