//! Podman itself: its containers are attached by its Docker-like service, and followed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::engine::import_into;
use crate::lab::runner::{Case, Skip};
use crate::lab::{Host, Lab, SOON, until, v4};

pub const CASES: &[Case] = &[crate::ci!(
    a_container_of_podman_is_attached_and_followed,
    "podman",
    "runc",
    "conmon",
    "nsenter",
    "busybox",
    "tar"
)];

/// Podman with directories of its own in the namespace of one host; ends with its containers when dropped.
pub(super) struct Podman {
    net: String,
    /// Name of the control group that its containers are in.
    group: String,
    dir: PathBuf,
    service: Option<Child>,
}

impl Podman {
    pub(super) fn start(host: &Host) -> Result<Podman> {
        let dir = host.dir().join("podman");
        std::fs::create_dir(&dir)?;
        let net = format!("--net=/run/netns/{}", host.ns().name());
        let mut podman = Podman {
            net,
            group: format!("{}-podman", host.ns().name()),
            dir,
            service: None,
        };
        let archive = import_into(&podman.dir)?;
        if let Err(why) = podman
            .run(&["import", "-q", &archive, "box:1"])
            .and_then(|_| podman.container("probe"))
        {
            let why = why.to_string();
            let last = why.lines().rfind(|l| !l.trim().is_empty());
            bail!(Skip(format!(
                "podman runs no containers here: {}",
                last.unwrap_or("no message")
            )));
        }
        podman.run(&["rm", "-f", "-t", "0", "probe"])?;
        podman.serve()?;
        host.set_env("CONTAINER_HOST", &format!("unix://{}", podman.at("sock")));
        Ok(podman)
    }

    fn at(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    fn words(&self, args: &[&str]) -> Vec<String> {
        let own = ["root", "run", "tmp"].map(|name| self.at(name));
        let [root, run, tmp] = &own;
        // crun 1.8 does not start where both versions of control groups are mounted.
        let before = [
            "nsenter",
            &self.net,
            "podman",
            "--root",
            root,
            "--runroot",
            run,
            "--tmpdir",
            tmp,
            "--storage-driver",
            "vfs",
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "file",
            "--runtime",
            "runc",
        ];
        let all = [&before[..], args].concat();
        all.into_iter().map(str::to_owned).collect()
    }

    pub(super) fn run(&self, args: &[&str]) -> Result<String> {
        let words = self.words(args);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        crate::lab::sh("timeout", &[&["-k", "2", "60"], &words[..]].concat())
    }

    /// A container without a network of Podman's. Its limits are those that a user without further rights can set.
    pub(super) fn container(&self, name: &str) -> Result<()> {
        let group = format!("--cgroup-parent=/{}", self.group);
        let limits = [
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1024:1024",
        ];
        let what = ["--name", name, "box:1", "/bin/sleep", "1000"];
        let before = ["run", "-d", "--network", "none", &group];
        self.run(&[&before[..], &limits, &what].concat()).map(drop)
    }

    /// Starts the service, as `podman.socket` does.
    fn serve(&mut self) -> Result<()> {
        let url = format!("unix://{}", self.at("sock"));
        let words = self.words(&["system", "service", "--time", "0", &url]);
        let log = std::fs::File::create(self.dir.join("log"))?;
        let child = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.service = Some(child);
        let socket = self.at("sock");
        until("podman's service answers", Duration::from_secs(10), || {
            Ok(std::os::unix::net::UnixStream::connect(Path::new(&socket)).is_ok())
        })?;
        Ok(())
    }

    fn stop_serving(&mut self) -> Result<()> {
        if let Some(mut service) = self.service.take() {
            kill(Pid::from_raw(i32::try_from(service.id())?), Signal::SIGTERM)?;
            crate::lab::netns::wait_end(&mut service)?;
        }
        let _ = std::fs::remove_file(self.at("sock"));
        Ok(())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.run(&["rm", "-f", "-t", "0", "-a"]);
        let _ = self.stop_serving();
        // A monitor of each command that its service ran stays for five minutes.
        for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let said = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let pid = process.file_name().to_string_lossy().parse();
            if let Ok(pid) = pid
                && String::from_utf8_lossy(&said).contains(&self.at("root"))
            {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        std::thread::sleep(Duration::from_millis(200));
        // Podman itself leaves the group of its monitors, of every kind that there is.
        for place in std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let group = place.path().join(&self.group);
            for sub in std::fs::read_dir(&group).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(sub.path());
            }
            let _ = std::fs::remove_dir(group);
        }
    }
}

fn a_container_of_podman_is_attached_and_followed(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let mut podman = Podman::start(a)?;
    podman.container("web")?;
    let told = a.json(&["attach", "podman", "web", "--subnet", "lab"])?;
    let address = v4(&told)?;
    b.ns().reaches(&address, SOON)?;
    let shown = a.json(&["workload", "show", "web"])?;
    ensure!(
        shown["kind"] == "podman" && shown["target"] == "web",
        "{shown}"
    );
    let again = a.json(&["attach", "podman", "web", "--subnet", "lab"])?;
    ensure!(again["already"] == true, "{again}");
    let state = |wanted: &str| {
        until(&format!("the workload is {wanted}"), SOON, || {
            Ok(a.json(&["workload", "show", "web"])?["state"] == wanted)
        })
    };
    // Stopped, started, renamed and made anew it is the same workload with the same address.
    podman.run(&["stop", "-t", "0", "web"])?;
    state("stopped")?;
    podman.run(&["start", "web"])?;
    b.ns().reaches(&address, SOON)?;
    podman.run(&["rm", "-f", "-t", "0", "web"])?;
    state("removed")?;
    podman.container("web")?;
    b.ns().reaches(&address, SOON)?;
    podman.run(&["rename", "web", "shop"])?;
    until("the new name is seen", SOON, || {
        Ok(a.json(&["workload", "show", "web"])?["target"] == "shop")
    })?;
    // The service may end when nobody asks it, as systemd ends it: containers live on.
    podman.stop_serving()?;
    b.ns().reaches(&address, SOON)?;
    podman.run(&["stop", "-t", "0", "shop"])?;
    podman.serve()?;
    state("stopped")?;
    a.ok(&["detach", "web"])?;
    a.fails(
        5,
        "E-NO-CONTAINER",
        &["attach", "podman", "none", "--subnet", "lab"],
    )?;
    let stopped = a.fails(
        1,
        "E-PODMAN",
        &["attach", "podman", "shop", "--subnet", "lab"],
    )?;
    ensure!(
        stopped.to_string().contains("podman start shop"),
        "{stopped}"
    );
    Ok(())
}
