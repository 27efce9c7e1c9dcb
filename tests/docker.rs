//! Real containers on two hosts: attached by name, talking by name, freed when they stop.
//!
//! Each host of the lab gets a Docker daemon of its own: own data root, exec root, socket and pid file in the lab's
//! directory, in the host's network namespace and a mount namespace of its own. The image is a static busybox, imported
//! from a tar archive, so that no registry is needed. Where Docker cannot run, the tests are counted as skipped. Each engine
//! ends by checking that no process, mount or control group of it is left.

#[expect(
    dead_code,
    reason = "the laboratory is shared with the netns tests, which use more of it"
)]
mod lab;

use std::fs::OpenOptions;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use lab::runner::{Case, Skip};
use lab::{Host, Lab, SOON, until, v4, v6};

/// A case in the fast set that starts an engine.
macro_rules! with_engine {
    ($name:ident) => {
        $crate::fast!(
            $name, "docker", "dockerd", "nsenter", "unshare", "tar", "busybox"
        )
    };
}

const CASES: &[Case] = &[
    with_engine!(containers_on_two_hosts_talk_by_name),
    with_engine!(docker_lets_ours_through_and_nothing_else),
    with_engine!(detach_gives_the_container_back),
    with_engine!(stopped_container_frees_its_name_and_lease),
    with_engine!(what_resolved_before_resolves_while_attached),
    with_engine!(file_that_is_not_the_containers_is_never_written),
    with_engine!(second_container_of_one_namespace_is_a_conflict_that_names_the_first),
    with_engine!(what_cannot_be_attached_is_named),
    fast!(engine_that_is_not_there_is_named),
    with_engine!(containers_with_users_of_their_own_are_attached_and_given_back),
    with_engine!(an_engine_that_restarts_below_live_containers_changes_nothing),
    with_engine!(a_container_is_found_at_the_engine_of_the_caller),
];

fn main() -> ExitCode {
    lab::runner::main(CASES)
}

/// A directory that the engine makes wherever its other directories are.
const ENGINES: &str = "/run/docker";

/// A Docker daemon in the namespace of one host; ends with its containers when dropped.
struct Engine {
    socket: String,
    command: Vec<String>,
    child: Child,
    dir: PathBuf,
    /// Below which every container of this engine has its control group.
    group: String,
    /// Whether `/run/docker`, which is the same for every engine, was not there before.
    first: bool,
}

impl Engine {
    fn start(host: &Host) -> Result<Engine> {
        Engine::start_with(host, "", &[])
    }

    /// With options of its own, and after a script in its own mount namespace.
    fn start_with(host: &Host, before: &str, options: &[&str]) -> Result<Engine> {
        let dir = host.dir().join("docker");
        std::fs::create_dir(&dir)?;
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let socket = format!("unix://{}", path("sock"));
        // Not `ip netns exec`: that hides /sys/fs/cgroup, which the engine needs. Each of these replaces itself by the next.
        let group = host.ns().name().to_owned();
        let first = !Path::new(ENGINES).exists();
        let (net, script) = (
            format!("--net=/run/netns/{}", host.ns().name()),
            format!("{before}\nexec \"$@\""),
        );
        let inside = [
            "nsenter",
            &net,
            "unshare",
            "-m",
            "--propagation",
            "private",
            "sh",
            "-ec",
            &script,
            "sh",
        ];
        // Docker's own defaults for the network: its bridge, its rules, its policy for what is forwarded.
        let dockerd = ["dockerd", "-H", &socket, "--storage-driver=vfs"];
        let (data, exec, pid, parent) =
            (path("data"), path("exec"), path("pid"), format!("/{group}"));
        let places = [
            "--data-root",
            &data,
            "--exec-root",
            &exec,
            "--pidfile",
            &pid,
        ];
        let groups = [
            "--exec-opt",
            "native.cgroupdriver=cgroupfs",
            "--cgroup-parent",
            &parent,
        ];
        let command = [&inside[..], &dockerd, &places, &groups, options].concat();
        let command: Vec<String> = command.into_iter().map(str::to_owned).collect();
        let child = Engine::spawn(&command, &dir)?;
        let mut engine = Engine {
            socket,
            command,
            child,
            dir,
            group,
            first,
        };
        engine.is_ready()?;
        engine.import()?;
        // What Docker made on this machine stays when it ends: that is what ours must return to.
        host.rebase()?;
        // The daemon and the command line of this host talk to this engine.
        host.set_env("DOCKER_HOST", &engine.socket);
        Ok(engine)
    }

    fn spawn(command: &[String], dir: &Path) -> Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join("log"))?;
        let (program, arguments) = command.split_first().context("no command")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        command.spawn().context("start dockerd")
    }

    /// Ends the engine, its containers live on where it was told so, and starts it again.
    fn restart(&mut self, signal: Signal, between: impl FnOnce() -> Result<()>) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?;
        lab::netns::wait_end(&mut self.child)?;
        between()?;
        // As long as systemd waits: what the engine had started for itself ends meanwhile.
        std::thread::sleep(Duration::from_secs(2));
        let _ = std::fs::remove_file(self.dir.join("pid"));
        self.child = Engine::spawn(&self.command, &self.dir)?;
        let log = self.dir.join("log");
        self.is_ready()
            .with_context(|| std::fs::read_to_string(log).unwrap_or_default())
    }

    fn is_ready(&mut self) -> Result<()> {
        let engine = self;
        let ready = until("dockerd answers", Duration::from_secs(30), || {
            if engine.child.try_wait()?.is_some() {
                return Ok(true);
            }
            Ok(engine.docker(&["info"]).is_ok())
        });
        if ready.is_err() || engine.child.try_wait()?.is_some() {
            let log = std::fs::read_to_string(engine.dir.join("log")).unwrap_or_default();
            let why = log
                .lines()
                .rfind(|l| l.contains("failed") || l.contains("level=error"))
                .unwrap_or("no message");
            bail!(Skip(format!("dockerd does not start here: {why}")));
        }
        Ok(())
    }

    fn docker(&self, args: &[&str]) -> Result<String> {
        lab::sh("docker", &[&["-H", &self.socket], args].concat())
    }

    /// The image `box`: a static busybox under the names of its tools.
    fn import(&self) -> Result<()> {
        let root = self.dir.join("root");
        for sub in ["bin", "etc", "proc", "tmp"] {
            std::fs::create_dir_all(root.join(sub))?;
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let busybox = std::env::split_paths(&path)
            .map(|d| d.join("busybox"))
            .find(|p| p.is_file());
        std::fs::copy(
            busybox.unwrap_or_else(|| PathBuf::from("/bin/busybox")),
            root.join("bin/busybox"),
        )?;
        for tool in [
            "sh", "ping", "nc", "sleep", "ip", "httpd", "cat", "mkdir", "chmod",
        ] {
            symlink("busybox", root.join("bin").join(tool))?;
        }
        let archive = self.dir.join("box.tar").to_string_lossy().into_owned();
        lab::sh(
            "tar",
            &["-C", &root.to_string_lossy(), "-cf", &archive, "."],
        )?;
        self.docker(&["import", &archive, "box:1"]).map(drop)
    }

    fn run(&self, name: &str) -> Result<()> {
        self.docker(&[
            "run",
            "-d",
            "--init=false",
            "--network",
            "none",
            "--name",
            name,
            "box:1",
            "/bin/sleep",
            "1000",
        ])
        .map(drop)
    }

    fn exec(&self, name: &str, args: &[&str]) -> Result<String> {
        self.docker(&[&["exec", name], args].concat())
    }
}

impl Engine {
    /// Processes in the control groups of this engine.
    fn orphans(&self) -> Vec<Pid> {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = processes
            .filter_map(|p| Some((p.path(), p.file_name().to_str()?.parse::<i32>().ok()?)));
        let group = format!("/{}/", self.group);
        let within = |path: &Path| {
            std::fs::read_to_string(path.join("cgroup")).is_ok_and(|of| of.contains(&group))
        };
        numbers
            .filter(|(path, _)| within(path))
            .map(|(_, number)| Pid::from_raw(number))
            .collect()
    }

    /// Takes away the control groups; what is still there of processes, groups and mounts.
    fn clean(&self) -> Vec<String> {
        let mut left = Vec::new();
        let named = |path: PathBuf, name: &str| {
            std::fs::read_to_string(&path)
                .unwrap_or_default()
                .contains(name)
                .then(|| path.display().to_string())
        };
        for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            if process
                .file_name()
                .to_string_lossy()
                .bytes()
                .all(|b| b.is_ascii_digit())
            {
                left.extend(named(
                    process.path().join("cgroup"),
                    &format!("/{}/", self.group),
                ));
                left.extend(named(
                    process.path().join("mountinfo"),
                    &self.dir.to_string_lossy(),
                ));
            }
        }
        let roots = std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path());
        for root in roots.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let group = root.join(&self.group);
            if group.is_dir() && std::fs::remove_dir(&group).is_err() {
                left.push(group.display().to_string());
            }
        }
        if self.first {
            let _ = std::fs::remove_dir(Path::new(ENGINES).join("plugins"));
            let _ = std::fs::remove_dir(ENGINES);
        }
        left
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Ok(all) = self.docker(&["ps", "-aq"]) {
            let ids: Vec<&str> = all.split_whitespace().collect();
            if !ids.is_empty() {
                let _ = self.docker(&[&["rm", "-f"], &ids[..]].concat());
            }
        }
        // A network that a test made is Docker's to take away, with its bridge and rules.
        let _ = self.docker(&["network", "prune", "-f"]);
        // SIGTERM first: the engine ends its container runtime with it.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if lab::netns::wait_end(&mut self.child).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // Where it had gone already, its containers may live on.
        for name in self.orphans() {
            let _ = kill(name, Signal::SIGKILL);
        }
        let left = self.clean();
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left by the engine: {left:?}");
        }
    }
}

/// Two hosts in one subnet, an engine and one running container each. The engines start before the daemons, so that
/// the daemons find them.
fn scene(lab: &Lab) -> Result<[(Rc<Host>, Engine); 2]> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let (ea, eb) = (Engine::start(&a)?, Engine::start(&b)?);
    ea.run("web")?;
    eb.run("db")?;
    a.start()?;
    b.start()?;
    let made = a.json(&["create", "lab"])?;
    b.json(&["join", &lab::text(&made, "invite")?])?;
    Ok([(a, ea), (b, eb)])
}

/// One host with an engine and a running container `web`, in a subnet of its own.
fn alone(lab: &Lab) -> Result<(Rc<Host>, Engine)> {
    let a = lab.host("a")?;
    let engine = Engine::start(&a)?;
    engine.run("web")?;
    a.start()?;
    a.json(&["create", "lab"])?;
    Ok((a, engine))
}

fn containers_on_two_hosts_talk_by_name(lab: &Lab) -> Result<()> {
    let [(a, ea), (b, eb)] = scene(lab)?;
    let web = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    let db = b.json(&[
        "attach", "docker", "db", "--subnet", "lab", "--name", "store",
    ])?;
    ensure!(
        web["workload"] == "web",
        "the container's name is the default: {web}"
    );
    let inside = ea.exec("web", &["ip", "addr"])?;
    ensure!(
        inside.contains(&v4(&web)?) && inside.contains(&v6(&web)?),
        "the container owns its addresses: {inside}"
    );
    let ping = |engine: &Engine, from: &str, to: &str| {
        until(&format!("{from} pings {to}"), SOON, || {
            engine
                .exec(from, &["ping", "-c", "1", "-W", "1", to])
                .map(|_| true)
        })
    };
    // By the containers' own resolver files.
    ping(&eb, "db", "web.lab.internal")?;
    ping(&ea, "web", "store.lab.internal")?;
    ping(&ea, "web", "store")?;
    ping(&eb, "db", &v6(&web)?)?;
    // A web server in one container, fetched by name from the other; it sees the real overlay address.
    ea.exec("web", &["mkdir", "-p", "/tmp/www/cgi-bin"])?;
    ea.exec(
        "web",
        &[
            "sh",
            "-c",
            "printf '#!/bin/sh\\necho; echo from $REMOTE_ADDR.\\n' > /tmp/www/cgi-bin/who",
        ],
    )?;
    ea.exec("web", &["chmod", "755", "/tmp/www/cgi-bin/who"])?;
    ea.exec("web", &["httpd", "-p", "80", "-h", "/tmp/www"])?;
    let fetch = "printf 'GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n' | nc -w 5 web.lab.internal 80";
    let page = eb.exec("db", &["sh", "-c", fetch])?;
    let source =
        |ip: &str| page.contains(&format!("from {ip}.")) || page.contains(&format!("from [{ip}]."));
    ensure!(
        source(&v4(&db)?) || source(&v6(&db)?),
        "the server sees the client's overlay address: {page}"
    );
    // And by a port map from the outside.
    a.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8080", "web:80"])?;
    let outside = lab.host("x")?;
    let url = format!("http://{}:8080/cgi-bin/who", a.under4());
    let answer = outside
        .ns()
        .run(&["timeout", "5", "python3", "-c", FETCH, &url])?;
    ensure!(answer.out.contains("from "), "{answer}");
    Ok(())
}

fn docker_lets_ours_through_and_nothing_else(lab: &Lab) -> Result<()> {
    let [(a, ea), (b, eb)] = scene(lab)?;
    let outside = lab.host("x")?;
    ea.run("two")?;
    let [web, two] =
        ["web", "two"].map(|name| a.json(&["attach", "docker", name, "--subnet", "lab"]));
    let (web, two, db) = (
        web?,
        two?,
        b.json(&["attach", "docker", "db", "--subnet", "lab"])?,
    );
    let policy = a.ns().ok(&["iptables", "-S", "FORWARD"])?;
    ensure!(
        policy.contains("-P FORWARD DROP"),
        "Docker drops what is forwarded: {policy}"
    );
    ea.exec("web", &["mkdir", "-p", "/tmp/www"])?;
    ea.exec("web", &["httpd", "-p", "80", "-h", "/tmp/www"])?;
    let connects = |address: &str, port: u16| {
        let python =
            "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)";
        outside
            .ns()
            .run(&["python3", "-c", python, address, &port.to_string()])
            .is_ok_and(|answer| answer.code == 0)
    };
    for any in ["0.0.0.0", "[::]"] {
        a.ok(&["map", "add", "lab", "tcp", &format!("{any}:8080"), "web:80"])?;
    }
    for (engine, from, to) in [(&ea, "web", &two), (&ea, "web", &db), (&eb, "db", &web)] {
        for address in [v4(to)?, v6(to)?] {
            until(&format!("{from} reaches {address}"), SOON, || {
                engine
                    .exec(from, &["ping", "-c", "1", "-W", "1", &address])
                    .map(|_| true)
            })?;
        }
    }
    for address in [a.under4(), a.under6()] {
        until(&format!("the map answers at {address}"), SOON, || {
            Ok(connects(address, 8080))
        })?;
    }
    // A container of Docker's own, with a published port: not for the overlay while the machine is closed to it.
    let www = [
        "run",
        "-d",
        "--init=false",
        "-p",
        "9090:80",
        "--name",
        "pub",
        "box:1",
        "/bin/httpd",
        "-f",
        "-p",
        "80",
    ];
    ea.docker(&www)?;
    let inspect = ["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "pub"];
    let bridged = ea.docker(&inspect)?.trim().to_owned();
    // Docker does not wait until what it started listens.
    until("Docker publishes its port to the outside", SOON, || {
        Ok(connects(a.under4(), 9090))
    })?;
    let (own4, _) = a.overlay("lab")?;
    let pid = ea
        .docker(&["inspect", "-f", "{{.State.Pid}}", "two"])?
        .trim()
        .to_owned();
    lab::sh(
        "nsenter",
        &[
            "-t",
            &pid,
            "-n",
            "ip",
            "route",
            "add",
            &format!("{bridged}/32"),
            "via",
            &own4,
        ],
    )?;
    for (address, port) in [
        (bridged.as_str(), "80"),
        (&own4, "9090"),
        (&bridged, "9090"),
    ] {
        let tried = ea.exec("two", &["nc", "-w", "1", "-z", address, port]);
        ensure!(
            tried.is_err(),
            "{address} port {port} is not for the overlay"
        );
    }
    // And nobody routes into our links, from outside or from Docker's bridge.
    outside.ns().ip(&[
        "route",
        "add",
        &format!("{}/32", v4(&web)?),
        "via",
        a.under4(),
    ])?;
    outside.rebase()?;
    ensure!(
        !outside.ns().pings(&v4(&web)?) && !connects(&v4(&web)?, 80),
        "no way in from outside"
    );
    ensure!(
        ea.exec("pub", &["ping", "-c", "1", "-W", "1", &v4(&web)?])
            .is_err(),
        "none from Docker's bridge"
    );
    ea.docker(&["rm", "-f", "pub"])?;
    // The bridge got an address of its own with its first container.
    a.ns()
        .ok(&["sysctl", "-qw", "net.ipv6.conf.docker0.disable_ipv6=1"])
        .map(drop)
}

/// Prints what is at an address.
const FETCH: &str =
    "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=4).read().decode())";

fn detach_gives_the_container_back(lab: &Lab) -> Result<()> {
    let (a, engine) = alone(lab)?;
    let before = [
        engine.exec("web", &["cat", "/etc/resolv.conf"])?,
        engine.exec("web", &["ip", "addr"])?,
    ];
    for _ in 0..2 {
        let web = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
        let resolver = engine.exec("web", &["cat", "/etc/resolv.conf"])?;
        ensure!(
            resolver.contains(&a.overlay("lab")?.0),
            "the container asks this host: {resolver}"
        );
        ensure!(
            engine.exec("web", &["ip", "route"])?.contains(&v4(&web)?),
            "its routes use its address"
        );
        a.ok(&["detach", "web"])?;
        let after = [
            engine.exec("web", &["cat", "/etc/resolv.conf"])?,
            engine.exec("web", &["ip", "addr"])?,
        ];
        ensure!(
            after == before,
            "detach leaves the container as it was: {after:?} instead of {before:?}"
        );
    }
    // A daemon that ends leaves nothing inside either, and takes the workload up again when it is back.
    let web = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    a.terminate()?;
    let after = [
        engine.exec("web", &["cat", "/etc/resolv.conf"])?,
        engine.exec("web", &["ip", "addr"])?,
    ];
    ensure!(
        after == before,
        "a stopped daemon leaves the container as it was: {after:?} instead of {before:?}"
    );
    a.start()?;
    until("the container has its address again", SOON, || {
        Ok(engine.exec("web", &["ip", "addr"])?.contains(&v4(&web)?))
    })?;
    Ok(())
}

/// A network of its own for containers, whose names the engine answers inside them.
const NETWORK: &[&str] = &["network", "create", "back"];

fn what_resolved_before_resolves_while_attached(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let engine = Engine::start(&a)?;
    engine.docker(NETWORK)?;
    let run = ["run", "-d", "--network", "back"];
    engine.docker(&[&run[..], &["--name", "db1", "box:1", "/bin/sleep", "1000"]].concat())?;
    let options = [
        "--dns-search",
        "corp.example",
        "--dns-opt",
        "timeout:1",
        "--name",
        "web",
        "box:1",
        "/bin/sleep",
        "1000",
    ];
    engine.docker(&[&run[..], &options].concat())?;
    let pings = |name: &str| engine.exec("web", &["ping", "-c", "1", "-W", "1", name]);
    let file = || engine.exec("web", &["cat", "/etc/resolv.conf"]);
    pings("db1").context("before it is attached")?;
    let before = file()?;
    a.start()?;
    a.json(&["create", "lab"])?;
    for _ in 0..2 {
        a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
        let now = file()?;
        ensure!(
            now.contains("search lab.internal corp.example"),
            "search lists are joined: {now}"
        );
        ensure!(
            now.contains("timeout:1") && now.contains("ndots:0"),
            "options stay: {now}"
        );
        pings("db1").with_context(|| format!("its neighbour: {now}"))?;
        pings("a.lab.internal")?;
        // A neighbour that comes later, and one that is attached itself.
        engine.docker(&[&run[..], &["--name", "late", "box:1", "/bin/sleep", "1000"]].concat())?;
        pings("late")?;
        engine.docker(&["rm", "-f", "late"])?;
        ensure!(pings("late").is_err(), "nothing is remembered of it");
        a.terminate()?;
        a.start()?;
        until(
            "its neighbour's name after a restart of the daemon",
            SOON,
            || Ok(pings("db1").is_ok()),
        )?;
        a.ok(&["detach", "web"])?;
        ensure!(file()? == before, "the file is as it was");
        pings("db1").context("after it was detached")?;
    }
    // The engine writes the file anew while the container is attached: that is what was there before us now.
    a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    engine.docker(&["network", "create", "more"])?;
    engine.docker(&[
        "run",
        "-d",
        "--network",
        "more",
        "--name",
        "far",
        "box:1",
        "/bin/sleep",
        "1000",
    ])?;
    engine.docker(&["network", "connect", "more", "web"])?;
    for name in ["far", "db1", "a.lab.internal"] {
        until(
            &format!("{name} after another network was connected"),
            SOON,
            || Ok(pings(name).is_ok()),
        )?;
    }
    Ok(())
}

fn file_that_is_not_the_containers_is_never_written(lab: &Lab) -> Result<()> {
    let (a, engine) = alone(lab)?;
    let text = "nameserver 10.99.0.9\n";
    let dir = a.dir().join("mounted");
    std::fs::create_dir(&dir)?;
    let own = |name: &str| dir.join(name).to_string_lossy().into_owned();
    for name in ["resolv.conf", "hosts", "linked"] {
        std::fs::write(dir.join(name), text)?;
    }
    // Mounted as a file, read-only and not; as the file of another container; by its directory; with no file to write.
    let root = engine.docker(&["inspect", "-f", "{{.ResolvConfPath}}", "web"])?;
    let mounts = [
        format!("{}:/etc/resolv.conf:ro", own("resolv.conf")),
        format!("{}:/etc/resolv.conf", own("linked")),
        format!("{}:/etc/resolv.conf", root.trim()),
        format!("{}:/etc", dir.display()),
    ];
    let others = || -> Result<Vec<String>> {
        let paths = ["resolv.conf", "hosts", "linked"].map(|name| dir.join(name));
        paths
            .iter()
            .map(Path::new)
            .chain([Path::new(root.trim())])
            .map(|p| Ok(std::fs::read_to_string(p)?))
            .collect()
    };
    let before = others()?;
    for (number, mount) in mounts.iter().enumerate() {
        let name = format!("c{number}");
        engine.docker(&[
            "run",
            "-d",
            "--network",
            "none",
            "-v",
            mount,
            "--name",
            &name,
            "box:1",
            "/bin/sleep",
            "1000",
        ])?;
        let at = a.json(&["attach", "docker", &name, "--subnet", "lab"])?;
        ensure!(
            others()? == before,
            "{mount}: a file of somebody else was written: {:?}",
            others()?
        );
        let by_directory = mount.ends_with(":/etc");
        ensure!(
            at["resolver"] == by_directory,
            "{mount}: only the engine's file is ours to write: {at}"
        );
        ensure!(
            at["dns"][0].is_string(),
            "the address is reported all the same: {at}"
        );
        a.ok(&["detach", &name])?;
        ensure!(
            others()? == before,
            "{mount}: given back what was never taken"
        );
    }
    // One that may not write at all has a file of its own all the same.
    engine.docker(&[
        "run",
        "-d",
        "--network",
        "none",
        "--read-only",
        "--name",
        "ro",
        "box:1",
        "/bin/sleep",
        "1000",
    ])?;
    let inside = engine.exec("ro", &["cat", "/etc/resolv.conf"])?;
    a.json(&["attach", "docker", "ro", "--subnet", "lab"])?;
    engine.exec("ro", &["ping", "-c", "1", "-W", "2", "a.lab.internal"])?;
    a.ok(&["detach", "ro"])?;
    ensure!(
        engine.exec("ro", &["cat", "/etc/resolv.conf"])? == inside,
        "the file is as it was"
    );
    // What somebody else wrote meanwhile stays.
    a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    a.terminate()?;
    a.start()?;
    engine.exec(
        "web",
        &["sh", "-c", "echo 'nameserver 10.99.0.7' > /etc/resolv.conf"],
    )?;
    a.ok(&["detach", "web"])?;
    let now = engine.exec("web", &["cat", "/etc/resolv.conf"])?;
    ensure!(
        now.contains("10.99.0.7"),
        "somebody else's text stays: {now}"
    );
    Ok(())
}

fn second_container_of_one_namespace_is_a_conflict_that_names_the_first(lab: &Lab) -> Result<()> {
    let (a, engine) = alone(lab)?;
    let run = [
        "run",
        "-d",
        "--network",
        "container:web",
        "--name",
        "side",
        "box:1",
        "/bin/sleep",
        "1000",
    ];
    engine.docker(&run)?;
    a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    let refused = a.fails(
        6,
        "E-ATTACHED",
        &["attach", "docker", "side", "--subnet", "lab"],
    )?;
    ensure!(
        refused.to_string().contains("namespace of web"),
        "the first is named: {refused}"
    );
    let pid = engine.docker(&["inspect", "-f", "{{.State.Pid}}", "side"])?;
    let path = format!("/proc/{}/ns/net", pid.trim());
    a.fails(
        6,
        "E-ATTACHED",
        &[
            "attach", "netns", &path, "--subnet", "lab", "--name", "path",
        ],
    )?;
    // The address is both containers', and so are the names: they share the engine's file.
    engine.exec("side", &["ping", "-c", "1", "-W", "2", "a.lab.internal"])?;
    a.ok(&["detach", "web"])?;
    let at = a.json(&["attach", "docker", "side", "--subnet", "lab"])?;
    ensure!(
        at["resolver"] == true,
        "the file that the engine made for both: {at}"
    );
    engine
        .exec("web", &["ping", "-c", "1", "-W", "2", "a.lab.internal"])
        .map(drop)
}

fn stopped_container_frees_its_name_and_lease(lab: &Lab) -> Result<()> {
    let [(a, ea), (b, eb)] = scene(lab)?;
    let b4 = b.overlay("lab")?.0;
    let gone = Duration::from_secs(5);
    for end in [["kill", "web"].as_slice(), &["stop", "-t", "0", "web"]] {
        let web = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
        b.ns()
            .resolves(&b4, &["web.lab.internal", "A"], &v4(&web)?, SOON)?;
        ea.docker(end)?;
        until("the stopped container's name is withdrawn", gone, || {
            Ok(b.ns().dig(&b4, &["web.lab.internal", "A"])?.status == "NXDOMAIN")
        })?;
        let left = a.json(&["workload", "ls"])?;
        ensure!(
            !left.to_string().contains(&v4(&web)?),
            "the lease is free: {left}"
        );
        ea.docker(&["start", "web"])?;
        // Asked for by hand, the address is there for the next.
        let ip = v4(&web)?;
        let again = a.json(&[
            "attach", "docker", "web", "--subnet", "lab", "--name", "next", "--ip", &ip,
        ])?;
        ensure!(v4(&again)? == ip, "{again}");
        a.ok(&["detach", "next"])?;
    }
    // The other host's container is not concerned.
    let db = b.json(&["attach", "docker", "db", "--subnet", "lab"])?;
    ensure!(eb.exec("db", &["ip", "addr"])?.contains(&v4(&db)?));
    Ok(())
}

fn what_cannot_be_attached_is_named(lab: &Lab) -> Result<()> {
    let (a, engine) = alone(lab)?;
    a.fails(
        5,
        "E-NO-CONTAINER",
        &["attach", "docker", "nosuch", "--subnet", "lab"],
    )?;
    engine.docker(&[
        "create",
        "--network",
        "none",
        "--name",
        "still",
        "box:1",
        "/bin/sleep",
        "1000",
    ])?;
    a.fails(
        1,
        "E-DOCKER",
        &["attach", "docker", "still", "--subnet", "lab"],
    )?;
    engine.docker(&[
        "run",
        "-d",
        "--network",
        "host",
        "--name",
        "bare",
        "box:1",
        "/bin/sleep",
        "1000",
    ])?;
    a.fails(
        1,
        "E-DOCKER",
        &["attach", "docker", "bare", "--subnet", "lab"],
    )?;
    a.fails(5, "E-", &["attach", "docker", "web", "--subnet", "nosuch"])?;
    let left = a.json(&["workload", "ls"])?;
    ensure!(
        left["workloads"].as_array().is_some_and(Vec::is_empty),
        "a refusal leaves nothing: {left}"
    );
    Ok(())
}

fn engine_that_is_not_there_is_named(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    a.set_env(
        "DOCKER_HOST",
        &format!("unix://{}", a.dir().join("none").display()),
    );
    a.start()?;
    a.json(&["create", "lab"])?;
    a.fails(
        1,
        "E-DOCKER",
        &["attach", "docker", "web", "--subnet", "lab"],
    )
    .map(drop)
}

fn a_container_is_found_at_the_engine_of_the_caller(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let engine = Engine::start(&a)?;
    // The daemon was started with another engine in its environment.
    a.set_env("DOCKER_HOST", "unix:///nowhere/daemons.sock");
    a.start()?;
    a.json(&["create", "lab"])?;
    engine.run("web")?;
    a.fails(
        1,
        "E-DOCKER",
        &["attach", "docker", "web", "--subnet", "lab"],
    )?;
    a.set_env("DOCKER_HOST", &engine.socket);
    let at = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    ensure!(
        engine.exec("web", &["ip", "addr"])?.contains(&v4(&at)?),
        "{at}"
    );
    Ok(())
}

/// The user whose range the containers get, in files that only the engine sees.
const REMAP: &str = "
grep -v ^dockremap: /etc/passwd >$D/passwd; echo dockremap:x:990:990::/nonexistent:/bin/false >>$D/passwd
grep -v ^dockremap: /etc/group >$D/group; echo dockremap:x:990: >>$D/group
echo dockremap:300000:65536 >$D/subuid; cp $D/subuid $D/subgid; touch /etc/subuid /etc/subgid
for f in passwd group subuid subgid; do mount --bind $D/$f /etc/$f; done";

fn containers_with_users_of_their_own_are_attached_and_given_back(lab: &Lab) -> Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let a = lab.host("a")?;
    // The containers' root has to pass.
    for dir in [lab.dir(), a.dir()] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711))?;
    }
    let script = REMAP.replace("$D", &a.dir().to_string_lossy());
    let engine = Engine::start_with(&a, &script, &["--userns-remap=dockremap"])?;
    ["web", "db"].iter().try_for_each(|name| engine.run(name))?;
    a.start()?;
    a.json(&["create", "lab"])?;
    let path = engine
        .docker(&["inspect", "-f", "{{.ResolvConfPath}}", "web"])?
        .trim()
        .to_owned();
    let file = || -> Result<(u32, u32, u32, String)> {
        let is = std::fs::metadata(&path)?;
        Ok((
            is.uid(),
            is.gid(),
            is.mode(),
            std::fs::read_to_string(&path)?,
        ))
    };
    let (before, links) = (file()?, engine.exec("web", &["ip", "addr"])?);
    ensure!(
        before.0 == 300_000,
        "the engine gives its containers users of their own: {before:?}"
    );
    let web = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    a.json(&["attach", "docker", "db", "--subnet", "lab"])?;
    ensure!(
        engine.exec("web", &["ip", "addr"])?.contains(&v4(&web)?),
        "it has its address"
    );
    until("web reaches db by name", SOON, || {
        engine
            .exec("web", &["ping", "-c", "1", "-W", "1", "db"])
            .map(|_| true)
    })?;
    let during = file()?;
    ensure!(
        (during.0, during.1, during.2) == (before.0, before.1, before.2),
        "{during:?} instead of {before:?}"
    );
    ["web", "db"]
        .iter()
        .try_for_each(|name| a.ok(&["detach", name]).map(drop))?;
    ensure!(file()? == before, "{:?} instead of {before:?}", file()?);
    ensure!(
        engine.exec("web", &["ip", "addr"])? == links,
        "its links are as they were"
    );
    Ok(())
}

fn an_engine_that_restarts_below_live_containers_changes_nothing(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let mut engine = Engine::start_with(&a, "", &["--live-restore"])?;
    let done = restarts(lab, &a, &mut engine);
    if let Err(error) = &done {
        println!("{error:#}");
    }
    done
}

fn restarts(lab: &Lab, a: &Host, engine: &mut Engine) -> Result<()> {
    ["web", "db"].iter().try_for_each(|name| engine.run(name))?;
    a.start()?;
    a.json(&["create", "lab"])?;
    let other = lab.workload("other")?;
    a.attach(&other, "lab", "other")?;
    for name in ["web", "db"] {
        a.json(&["attach", "docker", name, "--subnet", "lab"])?;
    }
    let listed = || Ok::<_, anyhow::Error>(a.json(&["workload", "ls"])?["workloads"].clone());
    let db = v4(&a.json(&["workload", "show", "db"])?)?;
    let before = listed()?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        engine.restart(signal, || {
            other.reaches(&db, SOON).context("while no engine runs")?;
            ensure!(listed()? == before, "while no engine runs: {}", listed()?);
            Ok(())
        })?;
        // Longer than until the end of a container is noticed.
        std::thread::sleep(Duration::from_secs(2));
        ensure!(listed()? == before, "after {signal}: {}", listed()?);
        engine
            .exec("web", &["ping", "-c", "1", "-W", "1", "db.lab.internal"])
            .context("by name, after a restart")?;
        other.reaches(&db, SOON)?;
    }
    // What ends afterwards is still noticed.
    engine.docker(&["rm", "-f", "db"])?;
    until("db is gone", SOON, || {
        Ok(!listed()?.to_string().contains("\"db\""))
    })?;
    a.ok(&["detach", "web"]).map(drop)
}
