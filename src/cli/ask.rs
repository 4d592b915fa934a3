//! Another program's answer, awaited no longer than one would wait for it oneself.

use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// What the program prints and how it ends; `None` where there is no such program or it takes too long. It then is
/// left to itself.
pub fn ask(mut command: Command, patience: Duration) -> Option<Output> {
    let (answer, answered) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let output = command
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        let _ = answer.send(output);
    });
    answered.recv_timeout(patience).ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_left_behind() {
        let mut sleep = Command::new("sleep");
        sleep.arg("2");
        assert!(ask(sleep, Duration::from_millis(20)).is_none());
        let mut echo = Command::new("echo");
        echo.arg("here");
        assert_eq!(ask(echo, Duration::from_secs(20)).unwrap().stdout, b"here\n");
        assert!(ask(Command::new("/absent"), Duration::from_secs(20)).is_none());
    }
}
