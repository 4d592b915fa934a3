//! The network between service and broker, in the hands of a test: it can be cut, frozen and refused.

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

    /// Holds every byte in both directions, without closing anything.
    pub fn freeze(&self, frozen: bool) {
        self.switches.frozen.store(frozen, Ordering::SeqCst);
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
    for (from, to) in ways {
        let switches = switches.clone();
        std::thread::spawn(move || pump(from, to, &switches));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, switches: &Switches) {
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
        if to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
