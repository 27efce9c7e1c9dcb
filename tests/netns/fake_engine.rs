//! A container engine that is not root's: what it says holds for its own user's namespaces alone.

use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Child;

use anyhow::{Result, ensure};

use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Lab, SOON, until};

pub const CASES: &[Case] = &[fast!(
    an_engine_of_a_users_own_is_not_believed_about_namespaces_of_others,
    "setpriv"
)];

/// A user that this machine knows nothing of.
const USER: u32 = 4_000_001;

/// An engine with one container, whose process is the one that it is told of. Its socket is the first argument.
const ENGINE: &str = r#"
import http.server, json, os, socketserver, sys
pid, file = int(sys.argv[2]), sys.argv[3]
class Engine(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"Id": "ab" * 32, "Name": "/web", "ResolvConfPath": file,
            "State": {"Status": "running", "Running": True, "Pid": pid},
            "HostConfig": {"NetworkMode": "bridge"}, "Config": {"Labels": {}}}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def address_string(self): return ""
    def log_message(self, *_): pass
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer): pass
server = Server(sys.argv[1], Engine)
os.chmod(sys.argv[1], 0o666)
server.serve_forever()
"#;

/// A process that ends when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn an_engine_of_a_users_own_is_not_believed_about_namespaces_of_others(lab: &Lab) -> Result<()> {
    let (a, web) = (lab.node("a")?, lab.workload("web")?);
    a.json(&["create", "lab"])?;
    let sleeper = Process(web.command(&["sleep", "60"]).spawn()?);
    let pid = sleeper.0.id().to_string();
    std::fs::set_permissions(lab.dir(), PermissionsExt::from_mode(0o755))?;
    let attach = ["attach", "docker", "web", "--subnet", "lab"];
    for user in [USER, 0] {
        let dir = lab.dir().join(format!("engine-{user}"));
        std::fs::create_dir(&dir)?;
        chown(&dir, Some(user), Some(user))?;
        let socket = dir.join("sock").to_string_lossy().into_owned();
        let secret = dir.join("secret").to_string_lossy().into_owned();
        let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
        let words = ["setpriv", &uid, &gid, "--clear-groups", "/usr/bin/python3"];
        let words = [&words[..], &["-c", ENGINE, &socket, &pid, &secret]].concat();
        let _engine = Process(a.ns().command(&words).spawn()?);
        until("the engine listens", SOON, || {
            Ok(std::path::Path::new(&socket).exists())
        })?;
        a.set_env("DOCKER_HOST", &format!("unix://{socket}"));
        if user == USER {
            a.fails(4, "E-PERMISSION", &attach)?;
            ensure!(
                !web.ip(&["-o", "link", "show"])?.contains("byway0"),
                "nothing was made inside"
            );
        } else {
            // The same words of root's engine are believed.
            a.ok(&attach)?;
            a.ok(&["detach", "web"])?;
        }
    }
    Ok(())
}
