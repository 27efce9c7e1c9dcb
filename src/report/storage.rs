//! Files of the state directory that cannot be written: what `status` says of them.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::Report;
use crate::api::types::Problem;
use crate::model::error::Code;
use crate::model::unwritten::Refused;
use crate::store::quoted;

/// One problem for all files with one remedy, until each of them was written.
pub(crate) fn problems(ctx: &Report) -> Vec<Problem> {
    let mut all: Vec<(Problem, Vec<String>)> = Vec::new();
    for unwritten in &ctx.unwritten {
        for (path, refused) in unwritten.borrow().iter() {
            let Told { code, why, help } = told(path, refused);
            let name = path
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default();
            match all.iter_mut().find(|(known, _)| known.help == help) {
                Some((_, files)) => files.push(name),
                None => {
                    let problem = Problem {
                        code: code.into(),
                        severity: "error".into(),
                        message: why,
                        help,
                    };
                    all.push((problem, vec![name]));
                }
            }
        }
    }
    let dir = ctx.config.state_dir.display();
    let said = |(problem, files): (Problem, Vec<String>)| Problem {
        message: format!(
            "{} in {dir} cannot be written: {}; what changes is refused, or lost with the daemon",
            files.join(" and "),
            problem.message
        ),
        ..problem
    };
    all.into_iter().map(said).collect()
}

struct Told {
    code: Code,
    why: String,
    help: String,
}

fn told(path: &Path, refused: &Refused) -> Told {
    let dir = path.parent().unwrap_or(path);
    let at = quoted(dir);
    let why = refused.why.clone();
    match refused.kind {
        // The kernel says the same of both.
        ErrorKind::StorageFull if inodes_are_used_up(dir) => {
            let why = "its file system has no inode left for another file".to_owned();
            Told {
                code: Code::DiskFull,
                why,
                help: format!("df -i {at}; remove files there that nobody needs"),
            }
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Told {
            code: Code::DiskFull,
            why,
            help: format!("df -h {at}; make room there"),
        },
        ErrorKind::ReadOnlyFilesystem => {
            let help = format!("mount -o remount,rw {}", quoted(mounted_at(dir)));
            Told {
                code: Code::StateIo,
                why,
                help,
            }
        }
        ErrorKind::PermissionDenied => Told {
            code: Code::StateIo,
            why,
            help: format!("ls -ld {at}; let byway's user write there"),
        },
        ErrorKind::NotFound => Told {
            code: Code::StateIo,
            why,
            help: format!("mkdir -p -m 700 {at}"),
        },
        _ => Told {
            code: Code::StateWrite,
            why,
            help: "dmesg; look there for errors of the disk, then start byway again".into(),
        },
    }
}

/// Where the file system that holds a directory is mounted.
fn mounted_at(dir: &Path) -> &Path {
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).ok();
    dir.ancestors()
        .take_while(|above| device(above) == device(dir))
        .last()
        .unwrap_or(dir)
}

fn inodes_are_used_up(dir: &Path) -> bool {
    // File systems that make inodes as they need them say that there are none at all.
    nix::sys::statvfs::statvfs(dir).is_ok_and(|fs| fs.files() > 0 && fs.files_available() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_written_has_a_remedy_for_its_cause() {
        let file = Path::new("/proc/self/state/host.json");
        let told = |kind: ErrorKind| {
            told(
                file,
                &Refused {
                    kind,
                    why: "why".into(),
                },
            )
        };
        assert_eq!(
            told(ErrorKind::ReadOnlyFilesystem).help,
            "mount -o remount,rw /proc/self/state"
        );
        assert_eq!(mounted_at(Path::new("/proc/self")), Path::new("/proc"));
        assert!(
            told(ErrorKind::StorageFull)
                .help
                .starts_with("df -h /proc/self/state")
        );
        assert!(
            told(ErrorKind::PermissionDenied)
                .help
                .starts_with("ls -ld /proc/self/state")
        );
        assert_eq!(told(ErrorKind::Other).code, Code::StateWrite);
    }
}
