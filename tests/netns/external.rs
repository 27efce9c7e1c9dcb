//! Where a machine is seen from outside, as STUN servers and pages say whom its configuration names.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::ci;
use crate::lab::internet::Uplink;
use crate::lab::nat::Kind;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until};
use crate::reach::configure;

pub const CASES: &[Case] = &[ci!(
    a_dead_stun_server_is_passed_over_and_a_lying_one_outvoted
)];

/// A STUN server in a host's namespace, which says what `lie` says, or the truth. It ends when it is dropped.
struct Server {
    asked: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(host: &Host, lie: Option<SocketAddr>) -> Result<Server> {
        let socket = host.ns().udp_socket(&format!("{}:3478", host.under4()))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (asked, stop) = (
            Arc::new(AtomicU32::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, end) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 600];
            while !end.load(Ordering::Relaxed) {
                match socket.recv_from(&mut buffer) {
                    Ok((20, from)) if buffer[..2] == [0, 1] => {
                        count.fetch_add(1, Ordering::Relaxed);
                        let _ = socket.send_to(&answer(&buffer[..20], lie.unwrap_or(from)), from);
                    }
                    Ok(_) => {}
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => break,
                }
            }
        });
        Ok(Server {
            asked,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The answer of RFC 8489 to a question: that it came from there.
fn answer(question: &[u8], seen: SocketAddr) -> Vec<u8> {
    let IpAddr::V4(ip) = seen.ip() else {
        return Vec::new();
    };
    let mut bytes = vec![1, 1, 0, 12];
    bytes.extend(&question[4..20]);
    bytes.extend([0, 0x20, 0, 8, 0, 1]);
    bytes.extend((seen.port() ^ 0x2112).to_be_bytes());
    bytes.extend(ip.octets().iter().zip(&question[4..8]).map(|(a, b)| a ^ b));
    bytes
}

/// Serves one page in a host's namespace, which says who asks.
fn page(host: &Host) -> Result<JoinHandle<()>> {
    let listener: TcpListener = host.ns().tcp_listener(&format!("{}:80", host.under4()))?;
    listener.set_nonblocking(true)?;
    Ok(std::thread::spawn(move || {
        for _ in 0..400 {
            if let Ok((mut stream, from)) = listener.accept() {
                let _ = stream.set_nonblocking(false);
                let _ = stream.read(&mut [0; 1024]);
                let body = from.ip().to_string();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = stream.write_all((head + &body).as_bytes());
                return;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }))
}

fn outside(host: &Host) -> Result<Value> {
    Ok(host.byway(&["netcheck", "--json"])?.value()?["external"].take())
}

fn seen(host: &Host, address: &str) -> Result<Value> {
    let mut last = Value::Null;
    until("it is known where the machine is seen", SOON, || {
        last = outside(host)?;
        ensure!(last["address"] == address, "{last}");
        let told = host.json(&["id"])?["addresses"].to_string();
        let (ip, port) = address.split_once(':').unwrap_or_default();
        ensure!(
            told.contains(&format!("/ip4/{ip}/udp/{port}/quic-v1")),
            "{told}"
        );
        Ok(true)
    })?;
    Ok(last)
}

/// P42: failover in their order, then the consensus of three, one of which lies.
fn a_dead_stun_server_is_passed_over_and_a_lying_one_outvoted(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let hosts: Vec<Rc<Host>> = ["dead", "true", "liar"]
        .into_iter()
        .zip(1..)
        .map(|(name, number)| inet.host(name, number))
        .collect::<Result<_>>()?;
    let (_site, h) = inet.behind("h", 10, &Uplink::behind(Kind::port_restricted()))?;
    let (right, lie) = ("203.0.113.110:4100", "198.51.100.66:99".parse()?);
    let honest = Server::start(&hosts[1], None)?;
    let liar = Server::start(&hosts[2], Some(lie))?;
    let page = page(&hosts[0])?;
    configure(
        &h,
        "[transport]\nlan_discovery = false\nexternal = \"stun\"\nstun = [\"203.0.113.1\", \"203.0.113.2\", \"203.0.113.3\"]\n",
    )?;
    h.start()?;
    let told = seen(&h, right)?;
    let sources = told["sources"].as_array().cloned().unwrap_or_default();
    ensure!(sources.len() == 2, "the third is not asked: {told}");
    ensure!(sources[0]["error"] == "it does not answer", "{told}");
    ensure!(sources[1]["said"] == right, "{told}");
    ensure!(liar.asked.load(Ordering::Relaxed) == 0);
    let file = h.dir().join("byway.toml");
    let kept = std::fs::read_to_string(&file)?
        .replace("external = \"stun\"", "external = \"consensus\"")
        .replace("\"203.0.113.1\", ", "")
        + "external_urls = [\"http://203.0.113.1/\"]\n";
    std::fs::write(&file, kept)?;
    let said = h.ok(&["reload"])?;
    ensure!(said.contains("transport.external"), "{said}");
    until("all are asked", SOON, || {
        let told = outside(&h)?;
        ensure!(told["by"] == "consensus", "{told}");
        let sources = told["sources"].as_array().cloned().unwrap_or_default();
        ensure!(sources.len() == 3, "{told}");
        ensure!(told["address"] == right, "{told}");
        ensure!(sources[1]["said"] == "198.51.100.66:99", "{told}");
        ensure!(sources[2]["said"] == "203.0.113.110", "{told}");
        Ok(true)
    })?;
    ensure!(honest.asked.load(Ordering::Relaxed) >= 2);
    ensure!(page.join().is_ok());
    Ok(())
}
