//! An engine of its own for a host, what it has in its containers, and the scenes that the tests begin with.

use std::fs::OpenOptions;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::runner::Skip;
use crate::lab::{Host, Lab, until};

/// A directory that the engine makes wherever its other directories are.
const ENGINES: &str = "/run/docker";

/// An archive of what is in the image `box`, made in a directory: a static busybox under the names of its tools.
pub fn import_into(dir: &Path) -> Result<String> {
    let root = dir.join("box");
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
    let archive = dir.join("box.tar").to_string_lossy().into_owned();
    crate::lab::sh(
        "tar",
        &["-C", &root.to_string_lossy(), "-cf", &archive, "."],
    )?;
    Ok(archive)
}

/// A Docker daemon in the namespace of one host; ends with its containers when dropped.
pub struct Engine {
    pub socket: String,
    command: Vec<String>,
    child: Child,
    dir: PathBuf,
    /// Below which every container of this engine has its control group.
    group: String,
    /// Whether `/run/docker`, which is the same for every engine, was not there before.
    first: bool,
}

impl Engine {
    pub fn start(host: &Host) -> Result<Engine> {
        Engine::start_with(host, "", &[])
    }

    /// With options of its own, and after a script in its own mount namespace.
    pub fn start_with(host: &Host, before: &str, options: &[&str]) -> Result<Engine> {
        Engine::start_as(host, "docker", before, options)
    }

    /// The same in a directory of that name: a host may have several engines.
    pub fn start_as(host: &Host, name: &str, before: &str, options: &[&str]) -> Result<Engine> {
        let dir = host.dir().join(name);
        std::fs::create_dir(&dir)?;
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let socket = format!("unix://{}", path("sock"));
        // Not `ip netns exec`: that hides /sys/fs/cgroup, which the engine needs. Each of these replaces itself by the next.
        let group = match name {
            "docker" => host.ns().name().to_owned(),
            other => format!("{}-{other}", host.ns().name()),
        };
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
    pub fn restart(&mut self, signal: Signal, between: impl FnOnce() -> Result<()>) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?;
        crate::lab::netns::wait_end(&mut self.child)?;
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

    pub fn docker(&self, args: &[&str]) -> Result<String> {
        crate::lab::sh("docker", &[&["-H", &self.socket], args].concat())
    }

    /// The image `box`.
    fn import(&self) -> Result<()> {
        let archive = import_into(&self.dir)?;
        self.docker(&["import", &archive, "box:1"]).map(drop)
    }

    pub fn run(&self, name: &str) -> Result<()> {
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

    pub fn exec(&self, name: &str, args: &[&str]) -> Result<String> {
        self.docker(&[&["exec", name], args].concat())
    }
}

impl Engine {
    /// Processes in the control groups of this engine, and what watched over them in its directory.
    fn orphans(&self) -> Vec<Pid> {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = processes
            .filter_map(|p| Some((p.path(), p.file_name().to_str()?.parse::<i32>().ok()?)));
        let group = format!("/{}/", self.group);
        let within = |path: &Path| {
            let says = |file: &str, what: &str| {
                std::fs::read_to_string(path.join(file)).is_ok_and(|of| of.contains(what))
            };
            says("cgroup", &group) || says("mountinfo", &self.dir.to_string_lossy())
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
            if group.is_dir() && remove_group(&group).is_err() {
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

/// Removes a control group without processes, with those below it that an engine left which was killed.
fn remove_group(group: &Path) -> std::io::Result<()> {
    for below in std::fs::read_dir(group)?.flatten() {
        if below.file_type()?.is_dir() {
            remove_group(&below.path())?;
        }
    }
    std::fs::remove_dir(group)
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
        if crate::lab::netns::wait_end(&mut self.child).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // Where it had gone already, its containers may live on.
        for _ in 0..30 {
            let orphans = self.orphans();
            if orphans.is_empty() {
                break;
            }
            for name in orphans {
                let _ = kill(name, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let left = self.clean();
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left by the engine: {left:?}");
        }
    }
}

/// Two hosts in one subnet, an engine and one running container each. The engines start before the daemons, so that
/// the daemons find them.
pub fn scene(lab: &Lab) -> Result<[(Rc<Host>, Engine); 2]> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let (ea, eb) = (Engine::start(&a)?, Engine::start(&b)?);
    ea.run("web")?;
    eb.run("db")?;
    a.start()?;
    b.start()?;
    let made = a.json(&["create", "lab"])?;
    b.json(&["join", &crate::lab::text(&made, "invite")?])?;
    Ok([(a, ea), (b, eb)])
}

/// One host with an engine and a running container `web`, in a subnet of its own.
pub fn alone(lab: &Lab) -> Result<(Rc<Host>, Engine)> {
    let a = lab.host("a")?;
    let engine = Engine::start(&a)?;
    engine.run("web")?;
    a.start()?;
    a.json(&["create", "lab"])?;
    Ok((a, engine))
}
