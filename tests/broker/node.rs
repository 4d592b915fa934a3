//! One RabbitMQ node for all tests of a run, however many processes they are spread over.
//!
//! Each test process holds a shared lock for as long as it lives; the kernel gives it back however the
//! process ends. The first one starts `scripts/with-broker`, whose command waits until the lock is free
//! and stays free for some seconds, and then takes the node away.

use embeddings::clock::Clock;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// Exit status of `with-broker` where RabbitMQ is not installed.
const NOT_INSTALLED: i32 = 77;
/// Longest time for a node to start on a busy machine.
const START_MAX: Duration = Duration::from_secs(90);
/// Runs inside `with-broker`. The start lock is held while the node is taken away, so that nobody joins
/// a node that is about to go.
const GUARD: &str = r#"
cd "$TEST_BROKER_DIR" || exit 1
cp "$WITH_BROKER_DIR/env" env && printf %s "$EMBED_BROKER__URL" >url.new && mv url.new url || exit 1
while :; do
    flock -x users.lock true
    sleep 5
    flock -x start.lock sh -c 'flock -n -x users.lock rm -f url' && exit 0
done
"#;

/// The shared node.
#[derive(Debug, Clone)]
pub struct Node {
    /// `amqp://…`
    pub url: String,
    dir: PathBuf,
}

/// The node, or `None` where RabbitMQ is not installed, which is then said.
pub fn shared() -> Option<Node> {
    static NODE: OnceLock<Option<(Node, File)>> = OnceLock::new();
    let node = NODE.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("broker");
        std::fs::create_dir_all(&dir).unwrap();
        let using = lock(&dir.join("users.lock"), libc::LOCK_SH);
        let _starting = lock(&dir.join("start.lock"), libc::LOCK_EX);
        let running = std::fs::read_to_string(dir.join("url")).ok();
        let url = match running.filter(|url| answers(url)) {
            Some(url) => url,
            None => start(&dir)?,
        };
        Some((Node { url, dir }, using))
    });
    if node.is_none() {
        eprintln!("skipped: RabbitMQ is not installed (apt install rabbitmq-server)");
    }
    node.as_ref().map(|(node, _)| node.clone())
}

impl Node {
    /// Host and port, for a proxy before it.
    pub fn address(&self) -> &str {
        address(&self.url)
    }

    /// The URL with another address in it.
    pub fn url_at(&self, address: std::net::SocketAddr) -> String {
        self.url.replace(self.address(), &address.to_string())
    }

    /// What a shell does to have this node's `rabbitmqctl`.
    pub fn shell(&self) -> String {
        let dir = self.dir.display();
        format!("cd {dir} && . ./env && PATH=/usr/lib/rabbitmq/bin:$PATH")
    }

    /// Runs `rabbitmqctl` on the node; its output, or a panic.
    pub fn ctl(&self, arguments: &str) -> String {
        let script = format!(". ./env && exec /usr/lib/rabbitmq/bin/rabbitmqctl -q {arguments}");
        let output = Command::new("sh")
            .args(["-c", &script])
            .current_dir(&self.dir)
            .output()
            .unwrap();
        assert!(output.status.success(), "rabbitmqctl {arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn address(url: &str) -> &str {
    let rest = url.split_once('@').expect("the URL has a user").1;
    rest.split_once('/').map_or(rest, |(address, _)| address)
}

fn answers(url: &str) -> bool {
    std::net::TcpStream::connect(address(url)).is_ok()
}

#[expect(
    clippy::zombie_processes,
    reason = "the node outlives the test that starts it; the guard ends it after the last"
)]
fn start(dir: &Path) -> Option<String> {
    let url = dir.join("url");
    let _ = std::fs::remove_file(&url);
    let log = File::create(dir.join("with-broker.log")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-broker");
    let mut guard = Command::new(script)
        .args(["sh", "-c", GUARD])
        .env("TEST_BROKER_DIR", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .spawn()
        .unwrap();
    let clock = Clock::start();
    loop {
        if let Ok(url) = std::fs::read_to_string(&url) {
            return Some(url);
        }
        if let Some(status) = guard.try_wait().unwrap() {
            let log = std::fs::read_to_string(dir.join("with-broker.log")).unwrap_or_default();
            assert_eq!(
                status.code(),
                Some(NOT_INSTALLED),
                "the node did not start: {log}"
            );
            return None;
        }
        let waited = clock.now().since(embeddings::clock::Moment::ZERO);
        assert!(waited < START_MAX, "the node did not start in time");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn lock(path: &Path, how: libc::c_int) -> File {
    let file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    // SAFETY: the descriptor belongs to `file`, which outlives the call.
    let locked = unsafe { libc::flock(file.as_raw_fd(), how) };
    assert_eq!(
        locked,
        0,
        "{}: {}",
        path.display(),
        std::io::Error::last_os_error()
    );
    file
}
