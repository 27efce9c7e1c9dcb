//! containerd's own command line with our CNI plugin: containers of two hosts by address and by name.

use std::fs::OpenOptions;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::runner::{Case, Skip};
use crate::lab::{Host, Lab, SOON, sh, until};

pub const CASES: &[Case] = &[crate::fast!(
    containers_of_containerd_are_in_a_subnet,
    "containerd",
    "ctr",
    "runc",
    "nsenter",
    "unshare",
    "tar",
    "sha256sum",
    "busybox"
)];

const IMAGE: &str = "docker.io/library/box:1";
/// Where containerd and its shims have their sockets, whatever its configuration says.
const RUN: &str = "/run/containerd";

/// A containerd in the namespace of one host; ends with its containers when dropped.
struct Containerd {
    child: Child,
    dir: PathBuf,
    net: String,
    /// Whether [`RUN`] was not there before.
    first: bool,
}

impl Containerd {
    /// Starts it with our plugin where it looks, and a network of subnet `lab`. What it and its command line write outside of
    /// their own directories is written to memory, which goes with them.
    fn start(host: &Host) -> Result<Containerd> {
        let dir = host.dir().join("containerd");
        std::fs::create_dir(&dir)?;
        let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = \"{}\"\n",
            at("root"),
            at("state"),
            at("sock")
        );
        std::fs::write(dir.join("config.toml"), config)?;
        std::fs::create_dir(dir.join("memory"))?;
        let first = !Path::new(RUN).exists();
        std::fs::create_dir_all(RUN)?;
        let script = "mount -t tmpfs none \"$0/memory\"\n\
                      cp -a /etc \"$0/memory/etc\"; mkdir -p \"$0/memory/etc/cni/net.d\"; mount --bind \"$0/memory/etc\" /etc\n\
                      if [ -d /usr/lib/cni ]; then cp -a /usr/lib/cni \"$0/memory/cni\"; mount --bind \"$0/memory/cni\" /usr/lib/cni; fi\n\
                      mount -t tmpfs none /opt; mount -t tmpfs none /var/lib; mount -t tmpfs none /run/containerd\n\
                      exec containerd -c \"$0/config.toml\"";
        let net = format!("--net=/run/netns/{}", host.ns().name());
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join("log"))?;
        let child = Command::new("nsenter")
            .args([
                &net,
                "unshare",
                "-m",
                "--propagation",
                "private",
                "sh",
                "-ec",
                script,
            ])
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start containerd")?;
        let mut engine = Containerd {
            child,
            dir,
            net,
            first,
        };
        engine.is_ready()?;
        engine.import()?;
        let socket = host.socket().to_string_lossy().into_owned();
        let byway = crate::lab::binary().to_string_lossy().into_owned();
        let install = [
            "integration",
            "install",
            "cni",
            "--conf",
            "/etc/cni/net.d/10-lab.conflist",
            "--subnet",
            "lab",
        ];
        engine.inside(&[&[byway.as_str(), "--socket", &socket], &install[..]].concat())?;
        Ok(engine)
    }

    /// Runs a program where the engine runs.
    fn inside(&self, program: &[&str]) -> Result<String> {
        let mounts = format!("--mount=/proc/{}/ns/mnt", self.child.id());
        let before = ["-k", "2", "60", "nsenter", &mounts, &self.net];
        sh("timeout", &[&before[..], program].concat())
    }

    fn ctr(&self, args: &[&str]) -> Result<String> {
        let socket = self.dir.join("sock").to_string_lossy().into_owned();
        self.inside(&[&["ctr", "-a", &socket], args].concat())
    }

    fn is_ready(&mut self) -> Result<()> {
        let engine = self;
        let ready = until("containerd answers", Duration::from_secs(30), || {
            Ok(engine.child.try_wait()?.is_some() || engine.ctr(&["version"]).is_ok())
        });
        if ready.is_err() || engine.child.try_wait()?.is_some() {
            let log = std::fs::read_to_string(engine.dir.join("log")).unwrap_or_default();
            bail!(Skip(format!(
                "containerd does not start here: {}",
                log.lines().last().unwrap_or("no message")
            )));
        }
        Ok(())
    }

    /// The image: a static busybox under the names of its tools, as `docker save` would write it.
    fn import(&self) -> Result<()> {
        let root = self.dir.join("image");
        for sub in ["bin", "etc", "proc", "tmp"] {
            std::fs::create_dir_all(root.join(sub))?;
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places = std::env::split_paths(&path).map(|d| d.join("busybox"));
        let busybox = places.find(|p| p.is_file()).context("no busybox")?;
        std::fs::copy(busybox, root.join("bin/busybox"))?;
        for tool in ["sh", "ping", "sleep", "ip"] {
            symlink("busybox", root.join("bin").join(tool))?;
        }
        std::fs::write(root.join("etc/resolv.conf"), "")?;
        let at = |name: &str| self.dir.join(name).to_string_lossy().into_owned();
        sh(
            "tar",
            &["-C", &root.to_string_lossy(), "-cf", &at("layer.tar"), "."],
        )?;
        let sum = sh("sha256sum", &[&at("layer.tar")])?;
        let sum = sum.split_whitespace().next().context("a sum")?;
        let arch = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        let config = serde_json::json!({"architecture": arch, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]}});
        let manifest = serde_json::json!([{"Config": "image.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
        std::fs::write(at("image.json"), config.to_string())?;
        std::fs::write(at("manifest.json"), manifest.to_string())?;
        let parts = ["manifest.json", "image.json", "layer.tar"];
        let whole = at("box.tar");
        sh(
            "tar",
            &[
                &["-C", &self.dir.to_string_lossy(), "-cf", &whole],
                &parts[..],
            ]
            .concat(),
        )?;
        self.ctr(&["images", "import", "--snapshotter", "native", &whole])
            .map(drop)
    }

    /// `ctr run --cni`, with a resolver that asks `server`.
    fn run(&self, options: &[&str], server: &str, name: &str, program: &[&str]) -> Result<String> {
        let file = self.dir.join(format!("resolv-{name}"));
        std::fs::write(&file, format!("nameserver {server}\nsearch lab.internal\n"))?;
        let mount = format!(
            "type=bind,src={},dst=/etc/resolv.conf,options=rbind:ro",
            file.display()
        );
        let fixed = ["run", "--snapshotter", "native", "--cni", "--mount", &mount];
        self.ctr(&[&fixed[..], options, &[IMAGE, name], program].concat())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for name in self
            .ctr(&["container", "ls", "-q"])
            .unwrap_or_default()
            .lines()
        {
            let _ = self.ctr(&["task", "rm", "-f", name]);
            let _ = self.ctr(&["container", "rm", name]);
        }
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if crate::lab::netns::wait_end(&mut self.child).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if self.first {
            let _ = std::fs::remove_dir(RUN);
        }
    }
}

fn workloads(host: &Host) -> Result<Vec<Value>> {
    let all = host.json(&["workload", "ls"])?;
    Ok(all["workloads"].as_array().context("no workloads")?.clone())
}

fn containers_of_containerd_are_in_a_subnet(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (at_a, at_b) = (Containerd::start(a)?, Containerd::start(b)?);
    let own =
        |host: &Host| -> Result<String> { crate::lab::v4(&host.json(&["subnet", "show", "lab"])?) };
    at_a.run(&["-d"], &own(a)?, "web", &["/bin/sleep", "1000"])?;
    let shown = workloads(a)?;
    let web = shown.first().context("web is attached")?;
    ensure!(
        web["workload"] == "default-web" && web["kind"] == "cni" && web["network"] == "byway-lab",
        "{web}"
    );
    // By address and by name; a container that has ended by itself is deleted by its runtime.
    let target = crate::lab::v4(web)?;
    for target in [target.as_str(), "default-web.lab.internal", "default-web"] {
        let said = at_b.run(
            &["--rm"],
            &own(b)?,
            "client",
            &["/bin/ping", "-c", "3", "-W", "2", target],
        )?;
        ensure!(said.contains("bytes from"), "{target}: {said}");
        ensure!(workloads(b)?.is_empty(), "ctr has deleted it");
    }
    // One that is killed is forgotten by `ctr`: nobody says DEL, and what it had is freed all the same.
    at_a.ctr(&["task", "kill", "-s", "KILL", "web"])?;
    until("what ctr forgot is freed", SOON, || {
        Ok(workloads(a)?.is_empty())
    })?;
    until("its name is withdrawn", SOON, || {
        Ok(b.byway(&["dns", "query", "default-web.lab.internal"])?.code == 5)
    })?;
    Ok(())
}
