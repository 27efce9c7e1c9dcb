//! A container runtime, as far as it calls network plugins: what libcni does with a list of them.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Host, Netns, binary};

/// Where the distribution has the plugins of the CNI project.
pub const PLUGINS: &str = "/usr/lib/cni";

/// One network of a host: a list of plugins that are called one behind the other.
pub struct Network {
    ns: Netns,
    /// The value of `cniVersion`.
    pub version: &'static str,
    name: String,
    plugins: Vec<Value>,
    dir: PathBuf,
}

/// How a plugin ended.
#[derive(Debug, Clone)]
pub struct Reply {
    pub code: i32,
    /// What it printed; null where that was nothing.
    pub out: Value,
}

/// A container of the runtime: its ID, and the rest of the environment.
#[derive(Clone)]
pub struct Container {
    pub id: String,
    pub ifname: String,
    pub netns: String,
    pub args: String,
}

impl Container {
    pub fn of(id: &str, netns: &Netns) -> Container {
        Container {
            id: id.to_owned(),
            ifname: "eth0".to_owned(),
            netns: format!("/run/netns/{}", netns.name()),
            args: String::new(),
        }
    }
}

impl Network {
    /// A network `name` whose only plugin is ours, in subnet `lab`.
    pub fn new(host: &Host, name: &str, more: Value) -> Result<Network> {
        let mut plugin = json!({"type": "byway-cni", "subnet": "lab", "socket": host.socket()});
        for (key, value) in more.as_object().context("keys of the configuration")? {
            plugin[key] = value.clone();
        }
        let dir = host.dir().join("cni");
        std::fs::create_dir_all(&dir)?;
        if !dir.join("byway-cni").exists() {
            std::os::unix::fs::symlink(binary(), dir.join("byway-cni"))?;
        }
        Ok(Network {
            ns: host.ns().clone(),
            version: "1.1.0",
            name: name.to_owned(),
            plugins: vec![plugin],
            dir,
        })
    }

    /// The same with a plugin of the distribution behind ours, or before it.
    pub fn with(mut self, plugin: Value, before: bool) -> Network {
        let at = if before { 0 } else { self.plugins.len() };
        self.plugins.insert(at, plugin);
        self
    }

    /// Runs one plugin with what is given, whatever that is.
    pub fn run(&self, plugin: &str, environment: &[(&str, &str)], input: &[u8]) -> Result<Reply> {
        let own = self.dir.join(plugin);
        let program = if own.exists() {
            own
        } else {
            PathBuf::from(PLUGINS).join(plugin)
        };
        let path = format!("{}:{PLUGINS}", self.dir.display());
        let mut child = self
            .ns
            .command(&["timeout", "-k", "2", "60", &program.to_string_lossy()])
            .env_remove("BYWAY_SOCKET")
            .env("CNI_PATH", path)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {plugin}"))?;
        // A plugin that reads no more than it takes breaks the pipe.
        let _ = child.stdin.take().context("its input")?.write_all(input);
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!err.contains("panicked"), "{plugin}: {err}");
        let out = match text.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text)
                .with_context(|| format!("{plugin} printed {text:?} {err}"))?,
        };
        Ok(Reply {
            code: output.status.code().unwrap_or(-1),
            out,
        })
    }

    /// What one plugin of the list is given. `capabilities` go to those that declare them.
    fn config(&self, plugin: &Value, capabilities: &Value, former: &Value) -> Result<Value> {
        let mut config = plugin.clone();
        config["cniVersion"] = self.version.into();
        config["name"] = self.name.as_str().into();
        let declared = config
            .as_object_mut()
            .context("a plugin")?
            .remove("capabilities");
        for (key, value) in capabilities.as_object().into_iter().flatten() {
            if key.starts_with("cni.dev/") {
                config[key] = value.clone();
            } else if declared.as_ref().is_some_and(|d| d[key] == true) {
                config["runtimeConfig"][key] = value.clone();
            }
        }
        if !former.is_null() {
            config["prevResult"] = former.clone();
        }
        Ok(config)
    }

    fn call(
        &self,
        command: &str,
        of: Option<&Container>,
        plugin: &Value,
        config: &Value,
    ) -> Result<Reply> {
        let mut environment = vec![("CNI_COMMAND", command)];
        if let Some(of) = of {
            environment.extend([
                ("CNI_CONTAINERID", of.id.as_str()),
                ("CNI_IFNAME", &of.ifname),
                ("CNI_NETNS", &of.netns),
                ("CNI_ARGS", &of.args),
            ]);
        }
        let name = plugin["type"].as_str().context("a plugin's type")?;
        self.run(name, &environment, config.to_string().as_bytes())
    }

    /// `ADD` by every plugin; the result of the last, or the first error.
    pub fn try_add(&self, of: &Container, capabilities: &Value) -> Result<Reply> {
        let mut last = None;
        let mut former = Value::Null;
        for plugin in &self.plugins {
            let config = self.config(plugin, capabilities, &former)?;
            let reply = self.call("ADD", Some(of), plugin, &config)?;
            if reply.code != 0 {
                return Ok(reply);
            }
            former = reply.out.clone();
            last = Some(reply);
        }
        last.context("a list without plugins")
    }

    /// `ADD`, which must succeed.
    pub fn add(&self, of: &Container, capabilities: &Value) -> Result<Value> {
        let reply = self.try_add(of, capabilities)?;
        ensure!(reply.code == 0, "ADD of {}: {reply:?}", of.id);
        Ok(reply.out)
    }

    /// `DEL` by every plugin, the last first, or `CHECK`.
    pub fn end(
        &self,
        command: &str,
        of: &Container,
        capabilities: &Value,
        result: &Value,
    ) -> Result<Reply> {
        let mut reply = None;
        let all: Vec<&Value> = match command {
            "DEL" => self.plugins.iter().rev().collect(),
            _ => self.plugins.iter().collect(),
        };
        for plugin in all {
            let config = self.config(plugin, capabilities, result)?;
            let told = self.call(command, Some(of), plugin, &config)?;
            if told.code != 0 {
                return Ok(told);
            }
            reply = Some(told);
        }
        reply.context("a list without plugins")
    }

    /// `DEL`, which must succeed.
    pub fn del(&self, of: &Container) -> Result<()> {
        let reply = self.end("DEL", of, &Value::Null, &Value::Null)?;
        ensure!(
            reply.code == 0 && reply.out.is_null(),
            "DEL of {}: {reply:?}",
            of.id
        );
        Ok(())
    }

    /// `GC` or `STATUS` of our plugin alone.
    pub fn ours(&self, command: &str, more: &Value) -> Result<Reply> {
        let Some(plugin) = self.plugins.iter().find(|p| p["type"] == "byway-cni") else {
            bail!("none of ours")
        };
        let config = self.config(plugin, more, &Value::Null)?;
        self.call(command, None, plugin, &config)
    }
}

impl Reply {
    /// Checks that it failed by this code of the specification, and that its message holds `part`.
    pub fn failed(&self, code: u64, part: &str) -> Result<()> {
        let told = self.out["msg"].as_str().unwrap_or_default();
        ensure!(
            self.code == 1 && self.out["code"] == code && told.contains(part),
            "expected code {code} and {part:?}: {self:?}"
        );
        let spoken = self.out["cniVersion"].as_str();
        ensure!(
            spoken.is_some_and(|v| !v.is_empty()),
            "no version: {self:?}"
        );
        Ok(())
    }
}
