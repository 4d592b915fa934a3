//! The last deaths, as they are kept in the state directory: one JSON object a line, the newest last.

use crate::report::Kill;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The file's name in the state directory.
const FILE: &str = "kills.jsonl";
/// Only the end of the file is read.
const TAIL_BYTES: u64 = 64 << 10;

/// The last `max` deaths, the newest first. Lines that cannot be understood are passed over.
///
/// # Errors
/// What stands in the way, for people.
pub fn recent(state: &Path, max: usize) -> Result<Vec<Kill>, String> {
    match tail(&state.join(FILE)) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let kills = text
                .lines()
                .rev()
                .filter_map(|line| serde_json::from_str(line).ok());
            Ok(kills.take(max).collect())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err("not readable: run as root or as embeddings".into())
        }
        Err(error) => Err(format!("not readable: {error}")),
    }
}

fn tail(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_come_first_and_broken_lines_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(recent(dir.path(), 5), Ok(Vec::new()));
        let lines = "{\"reason\":\"panic\"}\nnot json\n{\"reason\":\"no_progress\",\"stage\":\"computed\",\
                     \"uptime_ms\":7,\"new_field\":[1]}\n{\"reason\":\"oom_";
        std::fs::write(dir.path().join(FILE), lines).unwrap();
        let kills = recent(dir.path(), 5).unwrap();
        let reasons: Vec<&str> = kills.iter().map(|kill| kill.reason.as_str()).collect();
        assert_eq!(reasons, ["no_progress", "panic"]);
        assert_eq!(kills[0].stage.as_deref(), Some("computed"));
        assert_eq!(kills[0].other["new_field"], serde_json::json!([1]));
        assert_eq!(recent(dir.path(), 1).unwrap().len(), 1);
    }
}
