//! systemd-nspawn, and root file systems for containers. `scripts/deps` unpacks its package and does not install it, for it
//! would start services here.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::host::Answer;
use crate::lab::netns::wait_end;
use crate::lab::{Host, until};
use crate::resolvers::unpacked;

/// How long systemd may take until everything it starts has been started.
pub const BOOTED: Duration = Duration::from_secs(30);

/// A root file system with the programs of this machine and an `/etc` and `/var` of its own.
pub struct Root(PathBuf);

impl Root {
    /// Makes one at a place in the lab's directory.
    ///
    /// # Errors
    /// A file cannot be made.
    pub fn make(at: PathBuf) -> Result<Root> {
        for dir in [
            "etc", "var", "run", "tmp", "root", "proc", "sys", "dev", "usr",
        ] {
            std::fs::create_dir_all(at.join(dir))?;
        }
        for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
            // Where /usr is merged these are links, and the loader of programs is behind one of them.
            if let Ok(to) = std::fs::read_link(Path::new("/").join(name)) {
                std::os::unix::fs::symlink(to, at.join(name))?;
            }
        }
        if !at.join("bin").exists() && !at.join("bin").is_symlink() {
            bail!("this machine's /bin is not a link into /usr");
        }
        for (file, text) in [
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
            ("etc/group", "root:x:0:\n"),
            ("etc/os-release", "ID=bwt\nVERSION_ID=1\n"),
            // Without one systemd would believe in a first boot, and enable whatever is installed.
            ("etc/machine-id", "6279776179746573746d616368696e65\n"),
            (
                "etc/nsswitch.conf",
                "passwd: files\ngroup: files\nhosts: files dns\n",
            ),
            ("etc/hosts", "127.0.0.1 localhost\n"),
        ] {
            std::fs::write(at.join(file), text)?;
        }
        // Debian reaches programs such as awk and iptables by links there.
        if Path::new("/etc/alternatives").exists() {
            let to = at.join("etc").to_string_lossy().into_owned();
            crate::lab::sh("cp", &["-a", "/etc/alternatives", &to])?;
        }
        Ok(Root(at))
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.0.join(below)
    }
}

/// A program in the network namespace of a host. Not by `ip netns exec`, below which there are no control groups.
pub fn on(host: &Host) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{}", host.ns().name()))
        .stdin(Stdio::null());
    command
}

/// What runs below systemd-nspawn; it ends, at once, with this.
pub struct Container {
    child: Child,
    groups: Vec<PathBuf>,
    /// Its first process, as this machine sees it.
    pub leader: i32,
}

impl Container {
    /// Runs `systemd-nspawn WORDS` on a host, with that root, and waits for the container's first process.
    ///
    /// # Errors
    /// systemd-nspawn is not unpacked here, or ends.
    pub fn start(host: &Host, root: &Root, words: &[&str]) -> Result<Container> {
        let program = unpacked("systemd-container", "usr/bin/systemd-nspawn")?;
        let groups = groups(root)?;
        let log = std::fs::File::create(host.dir().join("nspawn.log"))?;
        // In a control group that can be looked at afterwards; what it notes of its containers goes with it.
        let procs: String = groups
            .iter()
            .map(|g| format!("echo $$ >{}/cgroup.procs; ", g.display()))
            .collect();
        let script = format!(
            "{procs}mount --make-rprivate / && mount -t tmpfs none /run/systemd && exec \"$@\""
        );
        let child = on(host)
            .args(["unshare", "-m", "sh", "-ec", &script, "sh"])
            .arg(program)
            .args([
                "--quiet",
                "--register=no",
                "--keep-unit",
                "--resolv-conf=off",
            ])
            .args(["--link-journal=no", "--console=pipe", "-D"])
            .arg(&root.0)
            .args(words)
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start systemd-nspawn")?;
        let mut container = Container {
            child,
            groups,
            leader: 0,
        };
        container.leader = container.found().with_context(|| {
            std::fs::read_to_string(host.dir().join("nspawn.log")).unwrap_or_default()
        })?;
        Ok(container)
    }

    /// Waits for the process that is the first one of a namespace of its own.
    fn found(&mut self) -> Result<i32> {
        let own = std::fs::read_link("/proc/self/ns/pid")?;
        let is_first =
            |pid: &i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns != own);
        let (mut ended, mut first) = (None, None);
        until("the container runs", BOOTED, || {
            ended = self.child.try_wait()?;
            first = children(self.child.id())?.into_iter().find(is_first);
            Ok(ended.is_some() || first.is_some())
        })?;
        match (ended, first) {
            (Some(status), _) => bail!("systemd-nspawn ended: {status}"),
            (None, first) => first.context("it has no process"),
        }
    }

    /// Runs a program inside, for a minute at most.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, program: &[&str]) -> Result<Answer> {
        let leader = self.leader.to_string();
        let enter = ["timeout", "-k", "2", "60", "nsenter", "-a", "-t", &leader];
        let environment = [
            "env",
            "-i",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ];
        let words = [&enter[1..], &environment, program].concat();
        let output = Command::new(enter[0]).args(words).output()?;
        Answer::of(program, &output)
    }

    /// Runs a program inside that must succeed; its standard output.
    ///
    /// # Errors
    /// It ends with another code than 0.
    pub fn ok(&self, program: &[&str]) -> Result<String> {
        let answer = self.run(program)?;
        ensure!(answer.code == 0, "inside: {answer}");
        Ok(answer.out)
    }

    /// The same for the words of a shell.
    ///
    /// # Errors
    /// It ends with another code than 0.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.ok(&["sh", "-ec", script])
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // With its first process all others of it end.
        if self.leader != 0 {
            let pid = nix::unistd::Pid::from_raw(self.leader);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        if wait_end(&mut self.child).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        for group in &self.groups {
            remove(group);
        }
    }
}

/// Takes away a control group and what is below it.
pub fn remove(group: &Path) {
    let below = std::fs::read_dir(group).into_iter().flatten().flatten();
    for entry in below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove(&entry.path());
    }
    let _ = std::fs::remove_dir(group);
}

/// Control groups of its own for what runs below a root, one in each hierarchy that systemd uses.
fn groups(root: &Root) -> Result<Vec<PathBuf>> {
    let name = root.0.to_string_lossy().replace('/', "-");
    let places = ["systemd", "unified", "."];
    let places = places.map(|p| Path::new("/sys/fs/cgroup").join(p));
    let mut all = Vec::new();
    for place in places {
        if place.join("cgroup.procs").exists() {
            let group = place.join(name.trim_start_matches('-'));
            std::fs::create_dir_all(&group)?;
            all.push(group);
        }
    }
    Ok(all)
}

/// Processes whose parent that is.
fn children(parent: u32) -> Result<Vec<i32>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // The name of the program, in brackets, may hold blanks.
        let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        if after.split_whitespace().nth(1) == Some(&parent.to_string()) {
            all.push(pid);
        }
    }
    Ok(all)
}
