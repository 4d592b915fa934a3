//! The table as papers: the commented default file and the manual page embeddings.toml(5).

use super::keys::{KEYS, Key, Kind, MODEL_KEYS, Preset};
use std::fmt::Write;

/// The default configuration file: every key with its text, commented out at its default.
pub fn default_file() -> String {
    let mut out = String::from(
        "# Configuration of embeddings; embeddings.toml(5) says more, and `embeddings config` shows every value\n\
         # in force and where it came from. Each line that is commented out shows the default.\n\
         # Files in /etc/embeddings/conf.d/*.toml win over this one, then the environment (EMBED_MAX_QUEUE,\n\
         # EMBED_BROKER__URL), then --set on the command line. Check changes with `embeddings check`.\n",
    );
    let mut section = "";
    for key in KEYS {
        let (above, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        if above != section {
            section = above;
            let _ = write!(out, "\n[{section}]\n");
        }
        entry(&mut out, key, name);
    }
    out.push_str(
        "\n# A model of its own section may have any of these; the default model needs none.\n\
         #[models.\"all-MiniLM-L6-v2\"]\n",
    );
    for key in MODEL_KEYS {
        entry(&mut out, key, key.name);
    }
    out
}

fn entry(out: &mut String, key: &Key, name: &str) {
    out.push('\n');
    let text = format!("{} Allowed: {}.", key.doc, key.kind.range());
    for line in wrapped(&text, 100) {
        let _ = writeln!(out, "# {line}");
    }
    let _ = writeln!(out, "#{name} = {}", literal(key));
}

/// The default as TOML; for a key without one, an example that fits.
fn literal(key: &Key) -> String {
    match (key.default, key.kind) {
        (Preset::Int(number), _) => number.to_string(),
        (Preset::Bool(flag), _) => flag.to_string(),
        (Preset::Text(text), _) => format!("{text:?}"),
        (Preset::Empty, _) => "[]".to_owned(),
        (Preset::Unset, Kind::Int { .. }) => {
            let own = KEYS.iter().find(|own| own.name == key.name);
            own.map_or_else(|| "0".to_owned(), literal)
        }
        (Preset::Unset, _) => "\"\"".to_owned(),
    }
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// embeddings.toml(5) as roff.
pub fn manual() -> String {
    let mut out = format!(
        ".TH EMBEDDINGS.TOML 5 \"\" \"embeddings {}\" \"File Formats\"\n",
        roff(env!("CARGO_PKG_VERSION"))
    );
    out.push_str(
        r#".nh
.SH NAME
embeddings.toml \- configuration of the embedding service
.SH SYNOPSIS
.I /etc/embeddings/embeddings.toml
.br
.I /etc/embeddings/conf.d/*.toml
.br
.I /etc/embeddings/instances/NAME/embeddings.toml
.br
.I /etc/embeddings/instances/NAME/conf.d/*.toml
.SH DESCRIPTION
The configuration of
.BR embeddings (1)
is TOML.
Five places are read, and a later one wins over an earlier one key by key:
the built\-in defaults,
.IR /etc/embeddings/embeddings.toml ,
the files
.I /etc/embeddings/conf.d/*.toml
in the order of their names,
the environment, and
.BI \-\-set " KEY" = VALUE
on the command line, which may be given several times.
With
.BI \-\-config " FILE"
that file is read instead of the ones below
.IR /etc/embeddings .
.PP
An instance
.RB ( embeddings@ \fINAME\fR .service ,
or
.BI \-\-instance " NAME"
on the command line) reads the files below
.I /etc/embeddings/instances/NAME
in place of the first two kinds; its
.I embeddings.toml
must be there.
.PP
In the environment a key is written in capitals behind
.BR EMBED_ ,
with two underscores where the key has a dot:
.BR EMBED_MAX_QUEUE ,
.BR EMBED_BROKER__URL .
A model's name is matched without regard to case and punctuation:
.BR EMBED_MODELS__ALL_MINILM_L6_V2__DEVICE .
The variable
.B HEARTBEAT_TIMEOUT
sets
.BR heartbeat_timeout_ms .
.PP
An unknown key, a value of the wrong type or out of its range, and an impossible combination of values
end the command with exit status 78 and a line for each that names where it stands, the key, the value and
what is allowed.
Risky combinations are logged as warnings at start.
.B embeddings config
prints every value and where it came from;
.B embeddings check
tests them against the machine and the broker.
A path in a file is relative to the folder of that file.
On SIGHUP the service reads the log level and the limits anew.
.SH PASSWORDS
The broker's password is taken from the systemd credential
.BR broker\-password ,
else from the file named by
.BR broker.password_file ,
else from the URL.
No password is ever logged, shown in an error, or printed by
.BR "embeddings config" .
.SH OPTIONS
"#,
    );
    for key in KEYS {
        option(&mut out, key, key.name);
    }
    out.push_str(".SH MODELS\nA model has a section of its own,\n.BI [models.\" NAME \"]\\fR,\nwith these keys.\nThe default model is configured even without one.\n");
    for key in MODEL_KEYS {
        option(&mut out, key, key.name);
    }
    out.push_str(
        r#".SH DIRECTORIES
Run\-time files, state and cache lie where
.BR $RUNTIME_DIRECTORY ,
.B $STATE_DIRECTORY
and
.B $CACHE_DIRECTORY
say, which systemd sets.
Without them root uses
.IR /run/embeddings ,
.I /var/lib/embeddings
and
.I /var/cache/embeddings
if the second exists; everybody else, and root where it does not, uses
.I embeddings
(of an instance
.IR embeddings@NAME ,
here and above)
below
.BR $XDG_RUNTIME_DIR ,
.B $XDG_STATE_HOME
.RI ( ~/.local/state )
and
.B $XDG_CACHE_HOME
.RI ( ~/.cache ).
.SH EXAMPLES
.EX
max_queue = 512

[broker]
url = "amqps://embedder@mq\-a.example.org,mq\-b.example.org/embeddings"
password_file = "/etc/embeddings/broker\-password"

[models."bge\-small\-en\-v1.5"]
aliases = ["text\-embedding\-3\-small"]
max_queue = 64
.EE
.SH SEE ALSO
.BR embeddings (1),
.BR embeddings.service (8),
.BR systemd.exec (5)
"#,
    );
    out
}

fn option(out: &mut String, key: &Key, name: &str) {
    let _ = writeln!(out, ".TP\n.B {}", roff(name));
    let _ = writeln!(
        out,
        "{}\n.br\nAllowed: {}.",
        roff(key.doc),
        roff(&key.kind.range())
    );
    match key.default {
        Preset::Unset | Preset::Empty => out.push_str("Not set by default.\n"),
        _ => {
            let _ = writeln!(out, "Default: {}.", roff(&literal(key)));
        }
    }
}

/// Escapes text for roff: no control line by accident, hyphens as typed.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) {
        format!("\\&{text}")
    } else {
        text
    }
}
