//! Rails that keep the walls of the house.
//!
//! Goal: arrows run only downward, the logic stays pure, one module alone names each big library, and no
//! file grows out of sight. Method: the sources are read as text; the floors are the table in
//! `src/lib.rs`, so that the table cannot lie either.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest file under `src`; calm ones have half of it.
const LINES_MAX: usize = 600;
/// What makes a decision depend on more than its parameters.
const IMPURE: [&str; 10] = [
    "tokio",
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "std::process",
    "Instant",
    "SystemTime",
    "tracing",
    "rand",
];
/// The broker's client library, and the one place that knows it.
const BROKER: (&[&str], &str) = (&["lapin"], "broker");
/// The tensor library, and the one place that knows it.
const ENGINE: (&[&str], &str) = (&["candle_core", "candle_nn", "candle_transformers"], "engine");

/// The screen's libraries, and the one place that knows them.
const SCREEN: (&[&str], &str) = (&["ratatui", "crossterm"], "cli");
/// The web server's libraries, and the one place that knows them.
const HTTP: (&[&str], &str) = (&["axum", "hyper", "hyper_util"], "http");

/// The words of OpenTelemetry's protocol, and the one place that knows them.
const TRACES: (&[&str], &str) = (&["opentelemetry_proto", "prost"], "traces");

struct Source {
    path: PathBuf,
    /// `broker` for `src/broker/intake.rs`, `args` for `src/args.rs`.
    module: String,
    text: String,
}

impl Source {
    /// Lines of code with their numbers: comments are free to name anything.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate();
        let code = lines.filter(|(_, line)| !line.trim_start().starts_with("//"));
        code.map(|(at, line)| (at + 1, line.split(" // ").next().unwrap_or(line)))
    }

    /// Complains of the first line of code that names one of `words`.
    fn must_not_name(&self, words: &[&str], why: &str) {
        for (at, line) in self.code() {
            for word in words {
                let named = names(line, word);
                assert!(!named, "{}:{at} names {word}: {why}", self.path.display());
            }
        }
    }
}

/// Whether `line` names `word` as a path or an import, and not as a part of a longer word.
fn names(line: &str, word: &str) -> bool {
    let whole = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + word.len()..];
        let path = word.contains("::") || word.starts_with(char::is_uppercase);
        let import = line.trim_start().starts_with("use ") || line.trim_start().starts_with("pub use ");
        whole(before) && whole(after.chars().next()) && (path || import || after.starts_with("::"))
    })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).expect("the folder is there");
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

fn sources(folder: &str) -> Vec<Source> {
    let folder = root().join(folder);
    let mut found = Vec::new();
    files(&folder, &mut found);
    found.sort();
    let read = |path: PathBuf| {
        let below = path.strip_prefix(&folder).expect("found below it");
        let first = below.iter().next().expect("a name").to_string_lossy();
        let module = first.trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&path).expect("a source is text");
        Source { path, module, text }
    };
    found.into_iter().map(read).collect()
}

/// Floor of each module, as the table in `src/lib.rs` has it.
fn floors() -> BTreeMap<String, u32> {
    let text = fs::read_to_string(root().join("src/lib.rs")).expect("the library's root");
    let mut floors = BTreeMap::new();
    for row in text.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let mut columns = row.split('|').map(str::trim);
        let (Some(Ok(floor)), Some(names)) = (columns.next().map(str::parse), columns.next()) else {
            continue;
        };
        for name in names.split('`').skip(1).step_by(2) {
            floors.insert(name.to_owned(), floor);
        }
    }
    assert!(
        floors.len() > 8,
        "the table of floors is not where it was: {floors:?}"
    );
    floors
}

/// The modules of ours that a line names by `crate::…`.
fn imports(line: &str) -> Vec<String> {
    let name = |rest: &str| {
        rest.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let mut found: Vec<String> = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.push(name(rest)),
            // `use crate::{a::B, c};`: names at the depth of the first brace.
            Some(group) => {
                let mut depth = 0;
                let mut start = true;
                for (at, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && c.is_alphanumeric() => {
                            found.push(name(&group[at..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found.retain(|name| name.starts_with(char::is_lowercase));
    found
}

/// A module imports only from floors below its own. `cli` holds the entry points, and so may know its
/// neighbours and `app`.
#[test]
fn arrows_run_only_downward() {
    let floors = floors();
    for source in sources("src")
        .iter()
        .filter(|it| it.module != "lib" && it.module != "main")
    {
        let module = &source.module;
        let floor = floors
            .get(module)
            .unwrap_or_else(|| panic!("{module} has no floor in src/lib.rs"));
        for (at, line) in source.code() {
            for import in imports(line).iter().filter(|import| *import != module) {
                let below = floors.get(import).is_some_and(|other| other < floor);
                let entry = module == "cli" && import != "main";
                assert!(
                    below || entry,
                    "{}:{at} imports {import}, which is not below {module}",
                    source.path.display()
                );
            }
        }
    }
}

#[test]
fn decisions_are_pure_and_the_ground_is_plain_data() {
    for source in sources("src") {
        match source.module.as_str() {
            "logic" => source.must_not_name(&IMPURE, "decisions take events and the moment, nothing else"),
            "job" => source.must_not_name(&IMPURE, "the wire's words are plain data"),
            "report" => source.must_not_name(&IMPURE, "what is said of the service is plain data"),
            "args" => source.must_not_name(&IMPURE[..4], "the command line is plain data"),
            // Settings are read from files and may hold addresses; clocks are read in one place only.
            "config" => source.must_not_name(
                &["tokio", "std::thread", "Instant", "SystemTime"],
                "settings are plain data",
            ),
            "clock" => source.must_not_name(&IMPURE[..4], "the clock only reads clocks"),
            _ => {}
        }
    }
}

#[test]
fn one_module_alone_names_each_big_library() {
    for source in sources("src") {
        for (words, home) in [BROKER, ENGINE, SCREEN, HTTP, TRACES] {
            if source.module != home {
                source.must_not_name(words, &format!("only {home} may"));
            }
        }
    }
}

/// `eprintln!` panics where nobody reads stderr any more, and a panic ends the process: `tell!` does neither.
#[test]
fn what_is_said_on_stderr_ends_nothing() {
    for source in sources("src") {
        if source.path.file_name().is_none_or(|name| name == "tests.rs") {
            continue;
        }
        for (at, line) in source.code() {
            let said = ["eprintln!(", "eprint!("].iter().any(|said| line.contains(said));
            assert!(
                !said,
                "{}:{at} has eprintln!; `tell!` never panics",
                source.path.display()
            );
        }
    }
}

/// What the compiler cannot check stays with the kernels, the CPU's and CUDA's, and each place says why it is right.
#[test]
fn unsafe_code_stays_with_the_kernels_and_gives_its_reasons() {
    let homes = ["src/engine/kernel", "src/engine/gpu/cuda"].map(|home| root().join(home));
    for source in sources("src") {
        for (at, line) in source.code() {
            let (path, line) = (source.path.display(), line.trim_start());
            let opens = line.contains("unsafe {") || line.contains("unsafe impl");
            let declares = line.contains("unsafe fn");
            if !(opens || declares) {
                continue;
            }
            // The environment may only be written before there are threads, which `main` alone can say.
            let allowed = homes.iter().any(|home| source.path.starts_with(home)) || source.module == "main";
            assert!(allowed, "{path}:{at} is unsafe, only the kernels may be");
            // The reason stands in the comment right above, or in the documentation of what is declared.
            let above = source.text.lines().take(at - 1).collect::<Vec<_>>();
            let reason = above.iter().rev().take_while(|line| {
                let line = line.trim_start();
                line.starts_with("//")
                    || line.starts_with("#[")
                    || line.starts_with("reason")
                    || line.starts_with("clippy::")
                    || line == ")]"
            });
            let named = reason
                .into_iter()
                .any(|line| line.contains("SAFETY") || line.contains("# Safety"));
            assert!(named, "{path}:{at} does not say why it is safe");
        }
    }
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    for (folder, lines_max) in [("src", LINES_MAX), ("tests", usize::MAX)] {
        for source in sources(folder) {
            let (path, lines) = (source.path.display(), source.text.lines().count());
            assert!(
                source.text.starts_with("//! "),
                "{path} does not begin with a header"
            );
            assert!(
                lines <= lines_max,
                "{path} has {lines} lines, limit is {lines_max}"
            );
        }
    }
}

/// The rails themselves: what they should see they see, and no more.
#[test]
fn the_rails_see_what_they_should() {
    assert!(names("use tokio::time;", "tokio"));
    assert!(names("    tokio::spawn(x)", "tokio"));
    assert!(names("let t: Instant = now;", "Instant"));
    assert!(!names("let tokios = 1;", "tokio"));
    assert!(!names("Some(\"lapin=warn\")", "lapin"));
    assert!(!names("an operand", "rand"));
    assert_eq!(
        imports("use crate::{job::{Lane, JobKey}, clock::Moment};"),
        ["job", "clock"]
    );
    assert_eq!(
        imports("let x: crate::job::Refusal = y(crate::config::Z);"),
        ["job", "config"]
    );
    assert!(imports("pub use super::job;").is_empty());
}
