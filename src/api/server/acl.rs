//! Access control lists of files (acl(5)): single users who may use a file beside its owner and its group.
//!
//! The kernel keeps a list as the attribute `system.posix_acl_access`: a version, then entries of 8 bytes in the order of
//! their tags. All numbers are little-endian.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::libc;

const ATTRIBUTE: &std::ffi::CStr = c"system.posix_acl_access";
const VERSION: u32 = 2;
/// The number of an entry that is about no single user or group.
const NOBODY: u32 = u32::MAX;
/// Bytes of the longest list that the kernel keeps.
const MAX_BYTES: usize = 65_536;

/// Whom an entry is about, as its tag says.
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;

/// One entry: its tag, its rights (4 read, 2 write, 1 execute), and the user or group it is about.
type Entry = (u16, u16, u32);

/// Gives users a right to a file, and takes it from others. Entries about anybody else stay.
///
/// # Errors
/// The file is another user's, or its file system keeps no lists.
pub(super) fn change(path: &Path, right: u16, add: &[u32], remove: &[u32]) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let before = match read(&name)? {
        Some(bytes) => parsed(&bytes).ok_or(io::ErrorKind::InvalidData)?,
        None => of_mode(std::fs::metadata(path)?.permissions().mode()),
    };
    let after = changed(before.clone(), right, add, remove);
    if after == before {
        return Ok(());
    }
    write(&name, &after)
}

/// The list that the mode of a file without one means.
fn of_mode(mode: u32) -> Vec<Entry> {
    let right = |shift: u32| u16::try_from((mode >> shift) & 7).unwrap_or(0);
    vec![
        (OWNER, right(6), NOBODY),
        (OWNING_GROUP, right(3), NOBODY),
        (OTHERS, right(0), NOBODY),
    ]
}

fn changed(mut list: Vec<Entry>, right: u16, add: &[u32], remove: &[u32]) -> Vec<Entry> {
    list.retain(|(tag, _, who)| {
        *tag != MASK && !(*tag == USER && (remove.contains(who) || add.contains(who)))
    });
    list.extend(add.iter().map(|who| (USER, right, *who)));
    let named = list.iter().any(|(tag, ..)| matches!(*tag, USER | GROUP));
    if named {
        let bounded = list
            .iter()
            .filter(|(tag, ..)| matches!(*tag, USER | OWNING_GROUP | GROUP));
        // The mask bounds them all, so it is what any of them has.
        let all = bounded.fold(0, |all, (_, right, _)| all | right);
        list.push((MASK, all, NOBODY));
    }
    list.sort_by_key(|(tag, _, who)| (*tag, *who));
    list.dedup();
    list
}

fn parsed(bytes: &[u8]) -> Option<Vec<Entry>> {
    let (version, entries) = bytes.split_first_chunk::<4>()?;
    let (entries, rest) = entries.as_chunks::<8>();
    let entry = |e: &[u8; 8]| {
        let [t0, t1, r0, r1, who @ ..] = *e;
        let (tag, right) = (u16::from_le_bytes([t0, t1]), u16::from_le_bytes([r0, r1]));
        (tag, right, u32::from_le_bytes(who))
    };
    let known = u32::from_le_bytes(*version) == VERSION && rest.is_empty();
    known.then(|| entries.iter().map(entry).collect())
}

fn written(list: &[Entry]) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, right, who) in list {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(right.to_le_bytes());
        bytes.extend(who.to_le_bytes());
    }
    bytes
}

/// The list of a file; none where only its mode counts.
#[expect(unsafe_code, reason = "getxattr has no safe wrapper")]
fn read(path: &CString) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0u8; MAX_BYTES];
    // SAFETY: both texts end with a zero byte, and the kernel writes at most as many bytes as the vector has.
    let rc = unsafe {
        libc::getxattr(
            path.as_ptr(),
            ATTRIBUTE.as_ptr(),
            bytes.as_mut_ptr().cast(),
            bytes.len(),
        )
    };
    match usize::try_from(rc) {
        Ok(length) => {
            bytes.truncate(length);
            Ok(Some(bytes))
        }
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENODATA) => Ok(None),
            error => Err(error),
        },
    }
}

#[expect(unsafe_code, reason = "setxattr has no safe wrapper")]
fn write(path: &CString, list: &[Entry]) -> io::Result<()> {
    let bytes = written(list);
    // SAFETY: both texts end with a zero byte, and the kernel reads as many bytes as the vector has.
    let rc = unsafe {
        libc::setxattr(
            path.as_ptr(),
            ATTRIBUTE.as_ptr(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn users_are_let_in_and_out_and_all_else_stays() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path();
        let mode = |mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o640);
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        let list = || parsed(&read(&name).unwrap().unwrap_or_default()).unwrap_or_default();
        change(path, 6, &[1002, 1001], &[]).unwrap();
        let both = [
            (OWNER, 6, NOBODY),
            (USER, 6, 1001),
            (USER, 6, 1002),
            (OWNING_GROUP, 4, NOBODY),
            (MASK, 6, NOBODY),
            (OTHERS, 0, NOBODY),
        ];
        assert_eq!(list(), both);
        change(path, 6, &[1001, 1002], &[]).unwrap();
        assert_eq!(list(), both, "the second time nothing changes");
        // An entry of somebody else's.
        change(path, 4, &[7], &[]).unwrap();
        change(path, 6, &[1002], &[1001]).unwrap();
        change(path, 6, &[], &[1002]).unwrap();
        assert!(
            list().contains(&(USER, 4, 7)) && list().len() == 5,
            "{:?}",
            list()
        );
        change(path, 6, &[], &[7]).unwrap();
        assert_eq!(list(), [], "what is left is the mode");
        let left = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(left & 0o777, 0o640);
    }
}
