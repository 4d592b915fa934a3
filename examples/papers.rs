//! Writes the papers that a package installs, all of them from the one definition of the command line and
//! the one table of configuration keys: `cargo run --release --example papers -- OUTDIR`.
//!
//! ```text
//!   OUTDIR/man/embeddings.1, embeddings-serve.1, …, embeddings.toml.5, embeddings.service.8
//!   OUTDIR/completions/bash/embeddings, zsh/_embeddings, fish/embeddings.fish
//!   OUTDIR/embeddings.toml      every key, commented out at its default
//! ```

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use embeddings::args::Cli;
use embeddings::config;
use std::fs;
use std::path::{Path, PathBuf};

/// embeddings.service(8), but for the version.
const UNITS: &str = include_str!("../packaging/embeddings.service.8");

/// What embeddings(1) says beyond the definition of its options.
const ROOT_SECTIONS: &str = r#".SH "EXIT STATUS"
.TP
.B 0
Done; for the service, stopped by SIGTERM.
.TP
.B 1
Failed; a line on standard error says why.
.TP
.B 2
Wrong use of the command line, or a line of input that is none.
.TP
.B 3
.BR embeddings\-dead (1)
found no such dead letter;
.BR embeddings\-status (1)
found no process.
.TP
.B 4
.BR embeddings\-status (1)
cannot know, such as for want of permission.
.TP
.B 69
.BR embeddings\-submit (1)
or
.B embeddings bench \-\-broker
reached no broker, or no service answered there.
.TP
.B 70
The service lost the broker for longer than
.BR disconnect_kill_ms .
.TP
.B 71
The service made no progress for
.BR liveness_max_stall_ms .
.TP
.B 72
The service computed wrong vectors.
.TP
.B 74
The output of
.BR embeddings\-submit (1)
or
.BR embeddings\-bench (1)
cannot be written.
.TP
.B 78
Bad configuration: file, key, value and allowed range are on standard error.
.TP
.B 130\fR, \fB141\fR, \fB143
.BR embeddings\-submit (1)
was ended by SIGINT, by a reader of its output that had gone, by SIGTERM.
.PP
Those of the service, and what follows each, are in
.BR embeddings.service (8).
.SH SIGNALS
The service drains on SIGTERM and SIGINT, and reads its limits anew on SIGHUP; see
.BR embeddings.service (8).
.B embeddings submit
writes what is finished and ends.
.SH ENVIRONMENT
.TP
.BI EMBED_ KEY
Sets a key of the configuration; see
.BR embeddings.toml (5).
.TP
.BR RUNTIME_DIRECTORY ", " STATE_DIRECTORY ", " CACHE_DIRECTORY
Folders, as systemd sets them; see
.BR embeddings.toml (5).
.TP
.B CREDENTIALS_DIRECTORY
Where systemd puts credentials;
.I broker\-password
in it is the broker's password.
.TP
.B HF_ENDPOINT\fR, \fBHF_TOKEN\fR, \fBHF_HUB_OFFLINE
Where
.B embeddings model pull
finds the Hugging Face Hub, who asks, and whether it may ask at all.
.TP
.B NO_COLOR
No colours, even on a terminal.
.SH FILES
.TP
.I /etc/embeddings/embeddings.toml\fR, \fI/etc/embeddings/conf.d/*.toml
Configuration; of an instance below
.IR /etc/embeddings/instances/NAME .
.TP
.I /run/embeddings/status.sock
Where the service answers
.BR embeddings\-status (1).
.TP
.I /var/lib/embeddings/kills.jsonl
The last deaths.
.TP
.I /var/lib/embeddings/models
Models installed by
.BR "embeddings model" .
.TP
.I /usr/share/embeddings/models
Models installed by packages.
.TP
.I /usr/share/embeddings/prometheus/embeddings.rules.yml
Alert rules for Prometheus.
.TP
.I /usr/share/embeddings/grafana/embeddings.json
A dashboard for Grafana.
.SH EXAMPLES
How is the service, and what is wrong with it?
.PP
.EX
embeddings status
sudo embeddings check
.EE
.PP
Vectors for the lines of a file; a run that is cut off goes on where it was:
.PP
.EX
embeddings submit notes.txt \-\-output vectors.jsonl \-\-resume
.EE
.PP
The lines nearest to a question:
.PP
.EX
embeddings submit \-\-search "who pays for damage?" notes.txt
.EE
.PP
Another model beside the default one:
.PP
.EX
sudo embeddings model pull intfloat/e5\-small\-v2
embeddings model check e5\-small\-v2
.EE
.PP
Jobs that could not be answered, back to their queue:
.PP
.EX
sudo embeddings dead list
sudo embeddings dead requeue \-\-all \-\-reason internal
.EE
"#;

fn main() -> anyhow::Result<()> {
    let out = std::env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .context("usage: papers OUTDIR")?;
    papers(&out)
}

/// Writes all of them below `out`.
pub fn papers(out: &Path) -> anyhow::Result<()> {
    let mut cli = Cli::command();
    cli.build();
    let man = out.join("man");
    fs::create_dir_all(&man).with_context(|| format!("failed to create {}", man.display()))?;
    pages(&cli, "embeddings", &man)?;
    write(&man.join("embeddings.toml.5"), config::manual().as_bytes())?;
    let units = UNITS.replace("@VERSION@", &roff(env!("CARGO_PKG_VERSION")));
    write(&man.join("embeddings.service.8"), units.as_bytes())?;
    write(&out.join("embeddings.toml"), config::default_file().as_bytes())?;

    for (shell, file) in [
        (Shell::Bash, "bash/embeddings"),
        (Shell::Zsh, "zsh/_embeddings"),
        (Shell::Fish, "fish/embeddings.fish"),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "embeddings", &mut text);
        let path = out.join("completions").join(file);
        fs::create_dir_all(path.parent().unwrap_or(out))?;
        write(&path, &text)?;
    }
    Ok(())
}

/// One page for a command, and one for each command below it.
fn pages(command: &Command, name: &str, dir: &Path) -> anyhow::Result<()> {
    // Building has given each command below the whole name, `embeddings-model-add`, and what is typed.
    let page = Man::new(command.clone());
    // A title of our own: the library's leaves out an empty date, and no date keeps builds reproducible.
    let mut text = format!(
        ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n.TH {} 1 \"\" \"embeddings {}\" \"User Commands\"\n.nh\n",
        roff(&name.to_uppercase()),
        env!("CARGO_PKG_VERSION")
    )
    .into_bytes();
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    let below = || {
        command
            .get_subcommands()
            .filter(|below| below.get_name() != "help" && !below.is_hide_set())
    };
    if below().next().is_some() {
        text.extend_from_slice(b".SH COMMANDS\n");
        for below in below() {
            let about = below.get_about().map(ToString::to_string).unwrap_or_default();
            let (page, about) = (roff(&format!("{name}-{}", below.get_name())), roff(&about));
            text.extend_from_slice(format!(".TP\n.BR {page} (1)\n{about}\n").as_bytes());
        }
    }
    let root = name == "embeddings";
    if root {
        text.extend_from_slice(ROOT_SECTIONS.as_bytes());
    }
    text.extend_from_slice(if root {
        b".SH \"SEE ALSO\"\n.BR embeddings.toml (5),\n.BR embeddings.service (8),\n.BR rabbitmq\\-server (8)\n"
    } else {
        b".SH \"SEE ALSO\"\n.BR embeddings (1),\n.BR embeddings.toml (5),\n.BR embeddings.service (8)\n"
    });
    write(&dir.join(format!("{name}.1")), &text)?;
    for below in below() {
        pages(below, &format!("{name}-{}", below.get_name()), dir)?;
    }
    Ok(())
}

/// Escapes text for roff.
fn roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

fn write(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
}
