//! The file that entries are written to before they are removed: JSON, one line each, added at the end, readable by its owner alone.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use balance_sync_schedule::retire::RawEntry;
use nix::fcntl::OFlag;
use serde_json::{Value, json};

/// What may be read by others.
const OF_OTHERS: u32 = 0o077;

/// The open file.
#[derive(Debug)]
pub(super) struct Export {
    file: File,
    path: PathBuf,
}

impl Export {
    /// Opens or makes it. A line that was cut off is ended.
    ///
    /// # Errors
    /// When it can't be written, is no regular file but a link or a folder, or others may read it.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let what = || format!("--export {}", path.display());
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        // What somebody else has put there is not followed elsewhere.
        options.custom_flags(OFlag::O_NOFOLLOW.bits());
        let mut file = options.open(path).with_context(what)?;
        let meta = file.metadata().with_context(what)?;
        if !meta.is_file() {
            bail!("{}: it is no regular file", what());
        }
        if meta.mode() & OF_OTHERS != 0 {
            bail!("{}: others than its owner may use it, and it gets amounts: chmod 600", what());
        }
        // A file whose name is not on the disk is lost with all that is.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).with_context(what)?;
        folder.sync_all().with_context(what)?;
        if meta.len() > 0 {
            file.seek(SeekFrom::End(-1)).with_context(what)?;
            let mut last = [0];
            file.read_exact(&mut last).with_context(what)?;
            if last != *b"\n" {
                file.write_all(b"\n").with_context(what)?;
            }
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// Adds lines, and waits until they are on the disk.
    ///
    /// # Errors
    /// When they can't be written: then nothing may be removed.
    pub(super) fn add(&mut self, lines: &[Value]) -> anyhow::Result<()> {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all());
        written.with_context(|| format!("--export {}", self.path.display()))
    }
}

/// An entry with all that is known of it. `value`: what Redis holds, and its size.
pub(super) fn line(
    tenant: &str,
    entry: &RawEntry,
    value: Option<&[u8]>,
    bytes: Option<u64>,
    fate: &str,
) -> Value {
    let raw = |raw: &Option<Vec<u8>>| {
        raw.as_ref().map(|raw| serde_json::from_slice(raw).unwrap_or_else(|_| Value::from(lossy(raw))))
    };
    let mut line = json!({
        "tenant": tenant, "member": lossy(&entry.member), "fate": fate, "value": value.map(lossy), "value_bytes": bytes,
        "quarantine": raw(&entry.quarantined), "loss": raw(&entry.lost),
    });
    // What is no text is not lost by being shown as such.
    for (name, bytes) in [("member_hex", Some(entry.member.as_slice())), ("value_hex", value)] {
        if let Some(bytes) = bytes.filter(|bytes| std::str::from_utf8(bytes).is_err()) {
            line[name] = Value::from(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        }
    }
    line
}

/// A scheduled member without a value: all that is known of it is its name.
pub(super) fn line_of_gone(tenant: &str, member: &[u8]) -> Value {
    let entry = RawEntry { member: member.to_vec(), quarantined: None, lost: None };
    line(
        tenant,
        &entry,
        None,
        None,
        "it is scheduled and has no value: the ledger's own worker drops it unwritten",
    )
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn lines_are_added_for_the_owner_alone_and_a_cut_line_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("entries.jsonl");
        Export::open(&path).unwrap().add(&[json!({ "n": 1 })]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut whole = fs::read(&path).unwrap();
        whole.extend(b"{\"n\":");
        fs::write(&path, whole).unwrap();
        Export::open(&path).unwrap().add(&[json!({ "n": 2 })]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"n\":1}\n{\"n\":\n{\"n\":2}\n");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Export::open(&path).unwrap_err().to_string().contains("chmod 600"));
        assert!(Export::open(folder.path()).is_err());
        let (other, link) = (folder.path().join("other"), folder.path().join("link"));
        Export::open(&other).unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        assert!(Export::open(&link).is_err());
    }

    #[test]
    fn what_is_no_text_is_written_in_hex_as_well() {
        let entry = RawEntry { member: b"m\xff".to_vec(), quarantined: Some(b"{}".to_vec()), lost: None };
        let line = line("t", &entry, Some(b"\xfe"), Some(1), "kept");
        assert_eq!((&line["member_hex"], &line["value_hex"]), (&json!("6dff"), &json!("fe")));
        assert_eq!((&line["quarantine"], &line["loss"]), (&json!({}), &Value::Null));
    }
}
