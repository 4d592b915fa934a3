//! The network between service and broker, in the hands of a test: it can be cut, frozen and refused.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often a pump looks at the switches.
const LOOK: Duration = Duration::from_millis(10);

/// A TCP proxy on loopback. Dropped, it cuts everything.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    switches: Arc<Switches>,
}

#[derive(Default)]
struct Switches {
    frozen: AtomicBool,
    refusing: AtomicBool,
    ended: AtomicBool,
    /// Deliveries to the consumer of this tag get lost.
    undelivered: Mutex<Option<&'static str>>,
    /// The broker tells that queues have no consumers.
    unconsumed: AtomicBool,
    /// The broker's confirms get lost.
    unconfirmed: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Listens, and connects everyone to `target`.
    pub fn to(target: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy {
            address: listener.local_addr().unwrap(),
            switches: Arc::default(),
        };
        let (target, switches) = (target.to_owned(), proxy.switches.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if switches.ended.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(stream) = stream
                    && !switches.refusing.load(Ordering::SeqCst)
                    && let Ok(upstream) = TcpStream::connect(&target)
                {
                    join(stream, upstream, &switches);
                }
            }
        });
        proxy
    }

    /// Resets all connections; new ones are taken.
    pub fn cut(&self) {
        for stream in self.switches.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether anybody has connected since the last cut.
    pub fn is_used(&self) -> bool {
        !self.switches.open.lock().unwrap().is_empty()
    }

    /// Holds every byte in both directions, without closing anything.
    pub fn freeze(&self, frozen: bool) {
        self.switches.frozen.store(frozen, Ordering::SeqCst);
    }

    /// Loses every delivery to the consumer with this tag, and nothing else.
    pub fn lose_deliveries(&self, tag: &'static str) {
        *self.switches.undelivered.lock().unwrap() = Some(tag);
    }

    /// Tells, in the broker's name, that queues have no consumers.
    pub fn deny_consumers(&self, denying: bool) {
        self.switches.unconsumed.store(denying, Ordering::SeqCst);
    }

    /// Loses every confirm of a publication, and nothing else.
    pub fn lose_confirms(&self) {
        self.switches.unconfirmed.store(true, Ordering::SeqCst);
    }

    /// Closes new connections at once.
    pub fn refuse(&self, refusing: bool) {
        self.switches.refusing.store(refusing, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.switches.ended.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the listener, which then ends.
        let _ = TcpStream::connect(self.address);
    }
}

fn join(client: TcpStream, broker: TcpStream, switches: &Arc<Switches>) {
    for stream in [&client, &broker] {
        stream.set_nodelay(true).unwrap();
        switches.open.lock().unwrap().push(stream.try_clone().unwrap());
    }
    let ways = [
        (client.try_clone().unwrap(), broker.try_clone().unwrap()),
        (broker, client),
    ];
    for ((from, to), frames) in ways.into_iter().zip([None, Some(Frames::default())]) {
        let switches = switches.clone();
        std::thread::spawn(move || pump(from, to, frames, &switches));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut frames: Option<Frames>, switches: &Switches) {
    from.set_read_timeout(Some(LOOK)).unwrap();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let bytes = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if switches.ended.load(Ordering::SeqCst) {
                    break;
                }
                continue;
            }
            Err(_) => break,
        };
        while switches.frozen.load(Ordering::SeqCst) && !switches.ended.load(Ordering::SeqCst) {
            std::thread::sleep(LOOK);
        }
        let passed = match &mut frames {
            None => to.write_all(&buffer[..bytes]),
            Some(frames) => to.write_all(&frames.pass(&buffer[..bytes], switches)),
        };
        if passed.is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// What the broker sends, frame by frame (AMQP 0-9-1, section 2.3.5: type, channel, size, payload, end).
#[derive(Default)]
struct Frames {
    begun: Vec<u8>,
    /// Channels whose next header and body belong to a delivery that gets lost, with the bytes still to come.
    losing: HashMap<u16, u64>,
}

impl Frames {
    const METHOD: u8 = 1;
    const HEADER: u8 = 2;
    const BODY: u8 = 3;
    const DELIVER: [u8; 4] = [0, 60, 0, 60];
    const DECLARE_OK: [u8; 4] = [0, 50, 0, 11];
    const ACK: [u8; 4] = [0, 60, 0, 80];

    /// The whole frames among what has come, without those that get lost.
    fn pass(&mut self, bytes: &[u8], switches: &Switches) -> Vec<u8> {
        self.begun.extend_from_slice(bytes);
        let mut passed = Vec::new();
        while self.begun.len() >= 8 {
            let size = u32::from_be_bytes(self.begun[3..7].try_into().unwrap()) as usize + 8;
            if self.begun.len() < size {
                break;
            }
            let mut frame: Vec<u8> = self.begun.drain(..size).collect();
            if !self.loses(&mut frame, switches) {
                passed.append(&mut frame);
            }
        }
        passed
    }

    fn loses(&mut self, frame: &mut [u8], switches: &Switches) -> bool {
        let (kind, channel) = (frame[0], u16::from_be_bytes([frame[1], frame[2]]));
        let end = frame.len() - 1;
        let payload = &mut frame[7..end];
        let begins = |bytes: [u8; 4]| payload.starts_with(&bytes);
        match kind {
            Frames::METHOD if begins(Frames::DELIVER) => {
                let tag = &payload[5..5 + usize::from(payload[4])];
                let lost = switches
                    .undelivered
                    .lock()
                    .unwrap()
                    .is_some_and(|lost| lost.as_bytes() == tag);
                if lost {
                    self.losing.insert(channel, u64::MAX);
                }
                lost
            }
            Frames::METHOD if begins(Frames::ACK) => switches.unconfirmed.load(Ordering::SeqCst),
            Frames::METHOD => {
                if begins(Frames::DECLARE_OK) && switches.unconsumed.load(Ordering::SeqCst) {
                    let consumers = payload.len() - 4;
                    payload[consumers..].fill(0);
                }
                false
            }
            Frames::HEADER => {
                let Some(left) = self.losing.get_mut(&channel) else {
                    return false;
                };
                *left = u64::from_be_bytes(payload[4..12].try_into().unwrap());
                if *left == 0 {
                    self.losing.remove(&channel);
                }
                true
            }
            Frames::BODY => {
                let Some(left) = self.losing.get_mut(&channel) else {
                    return false;
                };
                *left -= payload.len() as u64;
                if *left == 0 {
                    self.losing.remove(&channel);
                }
                true
            }
            _ => false,
        }
    }
}
