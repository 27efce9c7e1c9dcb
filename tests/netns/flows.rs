//! Connections and flows of datagrams under way: they end at both ends when what they use is no longer open.

use std::io::Read as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Lab, Netns, SOON, until};
use crate::machine::serve;

pub const CASES: &[Case] = &[
    fast!(what_is_no_longer_open_ends_at_both_ends_within_a_second),
    fast!(a_flow_that_was_forgotten_is_reset_and_not_resumed),
    fast!(datagrams_that_are_no_longer_let_in_are_refused_within_a_second),
    fast!(a_server_that_pushes_on_is_heard_only_while_it_is_let_in),
];

/// One end of a connection that speaks every 20 ms or never, and says how it ended: the name of the error.
const END: &str = r#"
import errno, select, socket, sys
role, to, port, speaks = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "speaks"
family = socket.AF_INET6 if ":" in to else socket.AF_INET
kind = socket.SOCK_DGRAM if role.startswith("udp") else socket.SOCK_STREAM
s = socket.socket(family, kind)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if role == "serves":
    s.bind((to, port)); s.listen(); print("ready", flush=True); s = s.accept()[0]
else:
    s.settimeout(2); s.connect((to, port)); print("ready", flush=True)
s.settimeout(2)
try:
    while True:
        if speaks: s.send(b"word")
        if select.select([s], [], [], 0.02)[0] and not s.recv(100): sys.exit("closed in order")
except OSError as error:
    print(errno.errorcode.get(error.errno, error), flush=True)
"#;

/// A process that is one [`END`], ready; killed when dropped, so that a failed test leaves nothing.
pub struct End(std::process::Child);

impl End {
    /// Role (`serves`, `asks` or `udp`), address, port, and `speaks` or `listens`.
    pub fn new(ns: &Netns, args: [&str; 4]) -> Result<End> {
        End::of(END, ns, &args)
    }

    fn of(program: &str, ns: &Netns, args: &[&str]) -> Result<End> {
        let argv = [&["python3", "-c", program], args].concat();
        let child = ns
            .command(&argv)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start python")?;
        let mut end = End(child);
        ensure!(end.line()? == "ready", "it is not ready");
        Ok(end)
    }

    /// The next line it prints.
    fn line(&mut self) -> Result<String> {
        let stdout = self.0.stdout.as_mut().context("stdout")?;
        #[expect(
            clippy::unbuffered_bytes,
            reason = "what a buffer holds would be lost for the next line"
        )]
        let bytes = stdout
            .bytes()
            .take_while(|b| !matches!(b, Ok(b'\n')))
            .collect::<Result<Vec<u8>, _>>()?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

fn what_is_no_longer_open_ends_at_both_ends_within_a_second(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b) = (&hosts[0], &hosts[1]);
    let here = lab.workload("here")?;
    a.attach(&here, "lab", "here")?;
    let (a4, a6) = a.overlay("lab")?;
    for (who, ns) in [("a member", b.ns()), ("a workload", &here)] {
        for own in [&a4, &a6] {
            ns.reaches(own, SOON)?;
            for (asker, machine) in [
                ("speaks", "listens"),
                ("listens", "speaks"),
                ("listens", "listens"),
            ] {
                let what = format!("{who} that {asker}, a machine that {machine}, by {own}");
                a.ok(&["subnet", "host", "lab", "tcp/2222,tcp/2223"])?;
                let mut server = End::new(a.ns(), ["serves", own, "2222", machine])?;
                let mut client = End::new(ns, ["asks", own, "2222", asker])?;
                std::thread::sleep(Duration::from_millis(300));
                ensure!(
                    !client.has_ended()? && !server.has_ended()?,
                    "{what}: the connection was under way"
                );
                a.ok(&["subnet", "host", "lab", "tcp/2223"])?;
                let took = until("both ends end", SOON, || {
                    Ok(client.has_ended()? && server.has_ended()?)
                })
                .with_context(|| what.clone())?;
                ensure!(took < Duration::from_secs(1), "{what}: only after {took:?}");
                for (end, told) in [("asker", client.line()?), ("machine", server.line()?)] {
                    let reset = ["ECONNRESET", "ECONNABORTED", "EPIPE"].contains(&told.as_str());
                    ensure!(reset, "{what}: the {end} is told {told:?}");
                }
            }
        }
    }
    Ok(())
}

fn a_flow_that_was_forgotten_is_reset_and_not_resumed(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b) = (&hosts[0], &hosts[1]);
    a.ok(&["subnet", "host", "lab", "tcp/2222"])?;
    let (a4, a6) = a.overlay("lab")?;
    // As where the kernel cannot end sockets: only what passes is left to tell them, and the port is open all along.
    for own in [&a4, &a6] {
        b.ns().reaches(own, SOON)?;
        for (asker, machine) in [("speaks", "listens"), ("listens", "speaks")] {
            let mut server = End::new(a.ns(), ["serves", own, "2222", machine])?;
            let mut client = End::new(b.ns(), ["asks", own, "2222", asker])?;
            std::thread::sleep(Duration::from_millis(300));
            a.ns()
                .ok(&["conntrack", "-D", "-p", "tcp", "--orig-port-dst", "2222"])?;
            let speaker = if asker == "speaks" {
                &mut client
            } else {
                &mut server
            };
            let took = until("who speaks is told", SOON, || speaker.has_ended())?;
            ensure!(took < Duration::from_secs(1), "{own}: only after {took:?}");
        }
    }
    Ok(())
}

fn datagrams_that_are_no_longer_let_in_are_refused_within_a_second(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b) = (&hosts[0], &hosts[1]);
    let (a4, a6) = a.overlay("lab")?;
    let _servers = serve(a.ns(), 2222)?;
    for own in [&a4, &a6] {
        b.ns().reaches(own, SOON)?;
        a.ok(&["subnet", "host", "lab", "udp/2222"])?;
        let mut asker = End::new(b.ns(), ["udp", own, "2222", "speaks"])?;
        std::thread::sleep(Duration::from_millis(300));
        ensure!(!asker.has_ended()?, "the flow was under way");
        a.ok(&["subnet", "host", "lab", "closed"])?;
        let took = until("the asker is told", SOON, || asker.has_ended())?;
        ensure!(took < Duration::from_secs(1), "{own}: only after {took:?}");
        let told = asker.line()?;
        ensure!(
            ["EHOSTUNREACH", "EACCES"].contains(&told.as_str()),
            "{own}: told {told:?}"
        );
    }
    Ok(())
}

/// The two ends of a flow of datagrams in which the machine speaks most. `pushes` answers whoever asked last, for ever;
/// `hears` asks once from port 40001, says when nothing has come for half a second, then asks on until it is refused.
const PUSH: &str = r#"
import errno, socket, sys, time
role, to, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in to else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
if role == "pushes":
    s.bind((to, port)); print("ready", flush=True)
    peer = s.recvfrom(100)[1]; s.settimeout(0.02)
    while True:
        try: s.sendto(b"word", peer)
        except OSError: pass
        try: peer = s.recvfrom(100)[1]
        except OSError: pass
s.bind(("", 40001)); s.connect((to, port)); s.settimeout(0.5); s.send(b"word"); s.recv(100); print("ready", flush=True)
until = time.time() + 10
try:
    while time.time() < until: s.recv(100)
    sys.exit("heard still")
except TimeoutError: print("silent", flush=True)
s.settimeout(0.02)
try:
    while time.time() < until:
        s.send(b"word")
        try: print("heard", s.recv(100), flush=True); break
        except TimeoutError: pass
except OSError as error: print(errno.errorcode.get(error.errno, error), flush=True)
"#;

fn a_server_that_pushes_on_is_heard_only_while_it_is_let_in(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b) = (&hosts[0], &hosts[1]);
    let (a4, a6) = a.overlay("lab")?;
    for own in [&a4, &a6] {
        b.ns().reaches(own, SOON)?;
        let _server = End::of(PUSH, a.ns(), &["pushes", own, "2222"])?;
        // Twice: what was ended is no obstacle once it is let in again.
        for round in 0..2 {
            a.ok(&["subnet", "host", "lab", "udp/2222"])?;
            let mut client = End::of(PUSH, b.ns(), &["hears", own, "2222"])?;
            std::thread::sleep(Duration::from_millis(700));
            ensure!(
                !client.has_ended()?,
                "{own}, {round}: the flow was under way"
            );
            a.ok(&["subnet", "host", "lab", "closed"])?;
            // Nobody but the server has spoken for half a second, and it goes on.
            ensure!(
                client.line()? == "silent",
                "{own}, {round}: the server is heard still"
            );
            until("the client is told", SOON, || client.has_ended())?;
            let told = client.line()?;
            ensure!(
                ["EHOSTUNREACH", "EACCES"].contains(&told.as_str()),
                "{own}, {round}: told {told:?}"
            );
        }
    }
    Ok(())
}
