//! A RabbitMQ node of one test's own, which may be killed and started again without harm to the others.

use crate::service::SOON;
use embeddings::clock::{Clock, Moment};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Runs inside `with-broker` until its stdin is closed.
const GUARD: &str = r#"
printf %s "$WITH_BROKER_DIR" >"$TEST_DIR/dir" && printf %s "$EMBED_BROKER__URL" >"$TEST_DIR/url.new" &&
mv "$TEST_DIR/url.new" "$TEST_DIR/url" && exec cat >/dev/null
"#;
/// Longest time for a node to start on a busy machine.
const START_MAX: Duration = Duration::from_secs(90);

/// The node. Dropped, it is taken away.
pub struct Private {
    /// `amqp://…`
    pub url: String,
    /// Where it lives, with `env` and `pid`.
    dir: PathBuf,
    guard: Child,
}

impl Private {
    /// Starts a node.
    pub fn start() -> Private {
        let told = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-broker");
        let guard = Command::new(script)
            .args(["sh", "-c", GUARD])
            .env("TEST_DIR", told.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let read = |name: &str| std::fs::read_to_string(told.path().join(name)).ok();
        wait_for(START_MAX, "the node starts", || read("url").is_some());
        Private {
            url: read("url").unwrap(),
            dir: PathBuf::from(read("dir").unwrap()),
            guard,
        }
    }

    /// Runs `rabbitmqctl` on the node, which takes connections somewhat before it takes commands.
    pub fn ctl(&self, arguments: &str) {
        let script = format!(". ./env && exec /usr/lib/rabbitmq/bin/rabbitmqctl -q {arguments}");
        wait_for(START_MAX, "the node takes commands", || {
            let output = Command::new("sh")
                .args(["-c", &script])
                .current_dir(&self.dir)
                .output()
                .unwrap();
            let early = String::from_utf8_lossy(&output.stderr).contains("requires the 'rabbit' app");
            assert!(
                output.status.success() || early,
                "rabbitmqctl {arguments}: {output:?}"
            );
            output.status.success()
        });
    }

    /// Kills it (SIGKILL). What it had on disk stays.
    pub fn kill(&self) {
        let pid = std::fs::read_to_string(self.dir.join("node-1/pid")).unwrap();
        let pid: libc::pid_t = pid.trim().parse().unwrap();
        // SAFETY: the id is that of the node which this test has started.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
        let entry = PathBuf::from(format!("/proc/{pid}/fd/0"));
        wait_for(SOON, "the node dies", || !entry.exists());
    }

    /// Starts it again with what it had on disk.
    pub fn start_again(&self) {
        let script = ". ./env && exec setsid /usr/lib/rabbitmq/bin/rabbitmq-server >again.out 2>&1";
        let mut server = Command::new("sh")
            .args(["-c", script])
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        // It ends with its node; somebody has to hear of it.
        std::thread::spawn(move || server.wait());
        let address = self.url.split_once('@').unwrap().1.split('/').next().unwrap();
        wait_for(START_MAX, "the node starts again", || {
            std::net::TcpStream::connect(address).is_ok()
        });
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// Waits until something is so.
pub fn wait_for(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let clock = Clock::start();
    while !is_so() {
        assert!(clock.now().since(Moment::ZERO) < limit, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
