//! Connections while the daemon is killed, or stopped and started again.

use std::process::{Child, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fast;
use crate::flows::End;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, until, v4, v6};

pub const CASES: &[Case] = &[
    fast!(connections_outlive_a_restart_and_those_through_maps_are_told),
    fast!(connections_outlive_a_kill),
];

/// An echo server, and a client that says after each answer how many it has and how long the slowest took, in ms.
const ECHO: &str = r#"
import socket, sys, threading, time
role, to, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in to else socket.AF_INET
if role == "serve":
    def answer(c):
        while data := c.recv(100):
            c.sendall(data)
    s = socket.socket(family); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in to: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((to, port)); s.listen(); print("ready", flush=True)
    while True:
        threading.Thread(target=answer, args=(s.accept()[0],), daemon=True).start()
s = socket.create_connection((to, port), 3)
s.settimeout(30)
count = worst = 0
while True:
    start = time.monotonic()
    s.sendall(b"word")
    if not s.recv(4): sys.exit("closed")
    count, worst = count + 1, max(worst, int(1000 * (time.monotonic() - start)))
    print(count, worst, flush=True)
    time.sleep(0.05)
"#;

/// One [`ECHO`] that goes with the test.
struct Echo(Child, std::path::PathBuf);

impl Echo {
    fn start(lab: &Lab, ns: &Netns, role: &str, to: &str, port: &str) -> Result<Echo> {
        let path = lab.dir().join(format!("{}-{role}-{to}-{port}", ns.name()));
        let out = std::fs::File::create(&path).context("make a file for what it says")?;
        let command = ["python3", "-c", ECHO, role, to, port];
        let child = ns
            .command(&command)
            .stdout(out)
            .stderr(Stdio::null())
            .spawn()
            .context("start python3")?;
        let echo = Echo(child, path);
        until("the first word", SOON, || Ok(!echo.said()?.is_empty()))?;
        Ok(echo)
    }

    fn said(&self) -> Result<String> {
        let all = std::fs::read_to_string(&self.1).context("read what it says")?;
        Ok(all.lines().last().unwrap_or_default().to_owned())
    }

    /// Answers so far, and how long the slowest took.
    fn answers(&self) -> Result<(u64, Duration)> {
        let said = self.said()?;
        let (count, worst) = said.split_once(' ').context("no numbers")?;
        Ok((count.parse()?, Duration::from_millis(worst.parse()?)))
    }

    fn has_ended(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

/// A connection that is kept, from a namespace to an address.
struct Kept {
    from: String,
    to: String,
    echo: Echo,
}

/// Two members with workloads, and a connection of every kind: between workloads of both members by both families, between
/// those of one, and with the machine itself.
struct Scene {
    kept: Vec<Kept>,
    _servers: Vec<Echo>,
    a: Rc<Host>,
    web: Netns,
    db: Netns,
    _other: Netns,
}

fn scene(lab: &Lab) -> Result<Scene> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b) = (Rc::clone(&hosts[0]), &hosts[1]);
    let (web, other, db) = (
        lab.workload("web")?,
        lab.workload("other")?,
        lab.workload("db")?,
    );
    let (at_web, at_db) = (a.attach(&web, "lab", "web")?, b.attach(&db, "lab", "db")?);
    a.attach(&other, "lab", "other")?;
    a.ok(&["subnet", "host", "lab", "tcp/90"])?;
    web.reaches(&v4(&at_db)?, SOON)?;
    let ends = [
        (&web, "0.0.0.0"),
        (&web, "::"),
        (&db, "0.0.0.0"),
        (&db, "::"),
        (a.ns(), "0.0.0.0"),
    ];
    let servers = ends
        .iter()
        .map(|(ns, any)| Echo::start(lab, ns, "serve", any, "90"))
        .collect::<Result<_>>()?;
    let (web4, web6, db4, db6) = (v4(&at_web)?, v6(&at_web)?, v4(&at_db)?, v6(&at_db)?);
    let (own, _) = a.overlay("lab")?;
    let pairs = [
        (&web, &db4),
        (&web, &db6),
        (&db, &web4),
        (&db, &web6),
        (b.ns(), &own),
        (&other, &web4),
        (a.ns(), &db4),
    ];
    let keep = |(ns, to): (&Netns, &String)| {
        Ok(Kept {
            from: ns.name().to_owned(),
            to: to.clone(),
            echo: Echo::start(lab, ns, "ask", to, "90")?,
        })
    };
    Ok(Scene {
        kept: pairs.into_iter().map(keep).collect::<Result<_>>()?,
        _servers: servers,
        a,
        web,
        db,
        _other: other,
    })
}

impl Scene {
    /// What each connection has had so far.
    fn answers(&self) -> Result<Vec<(u64, Duration)>> {
        self.kept.iter().map(|kept| kept.echo.answers()).collect()
    }

    /// Each connection has gone on since it had so many answers, and none of them took longer than `limit`.
    fn go_on(&mut self, before: &[(u64, Duration)], limit: Duration) -> Result<()> {
        for (Kept { from, to, echo }, before) in self.kept.iter_mut().zip(before) {
            let went_on = || Ok(echo.answers()?.0 > before.0 + 20);
            until(
                &format!("the connection from {from} to {to} goes on"),
                SOON + limit,
                went_on,
            )?;
            let worst = echo.answers()?.1;
            println!("  {from} to {to}: {worst:?} at most");
            ensure!(
                !echo.has_ended()? && worst < limit,
                "{from} to {to}: {worst:?}"
            );
        }
        Ok(())
    }
}

/// A daemon that is killed takes its TUN with it, and nothing else: connections wait for the next one.
fn connections_outlive_a_kill(lab: &Lab) -> Result<()> {
    let mut scene = scene(lab)?;
    // Twice: the second one finds what a killed daemon left.
    for _ in 0..2 {
        let before = scene.answers()?;
        scene.a.kill9()?;
        scene.a.start()?;
        scene.go_on(&before, Duration::from_secs(10))?;
    }
    Ok(())
}

/// What an upgrade does: the daemon is stopped and another is started on the same state.
fn connections_outlive_a_restart_and_those_through_maps_are_told(lab: &Lab) -> Result<()> {
    let (mut scene, x) = (scene(lab)?, lab.host("x")?);
    let a = Rc::clone(&scene.a);
    // At one address: no proxy of ours asks the target, which takes but one connection.
    for (port, target) in [("8081", "web:91"), ("8082", "db:91")] {
        a.ok(&[
            "map",
            "add",
            "lab",
            "tcp",
            &format!("{}:{port}", a.under4()),
            target,
        ])?;
    }
    let mut served = [
        End::new(&scene.web, ["serves", "0.0.0.0", "91", "speaks"])?,
        End::new(&scene.db, ["serves", "0.0.0.0", "91", "speaks"])?,
    ];
    let mut mapped = [("8081", a.under4()), ("8082", a.under4())]
        .map(|(port, to)| End::new(x.ns(), ["asks", to, port, "speaks"]))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let before = scene.answers()?;
    a.terminate()?;
    let took = until("clients of maps are told", SOON, || {
        mapped
            .iter_mut()
            .try_fold(true, |all, end| Ok(end.has_ended()? && all))
    })?;
    ensure!(
        took < Duration::from_secs(1),
        "clients of maps are told after {took:?}"
    );
    a.start()?;
    scene.go_on(&before, Duration::from_secs(3))?;
    let took = until(
        "the other ends of the maps' connections",
        Duration::from_secs(30),
        || {
            served
                .iter_mut()
                .try_fold(true, |all, end| Ok(end.has_ended()? && all))
        },
    )?;
    println!("  servers behind maps are told {took:?} later");
    let _again = scene.web.serve("tcp", "0.0.0.0", 91)?;
    x.ns().tcp(a.under4(), 8081, 1000).map(drop)
}
