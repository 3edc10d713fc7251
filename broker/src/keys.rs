//! The master key, the keys made from it, and which listeners need a credential.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use usher_shared::id::NodeId;
use usher_shared::link::TicketKey;
use usher_shared::secret::{Key, MasterKey, SecretError};

use crate::config::{Config, MasterKeyIs};
use crate::origin::OriginError;
use crate::random::{self, NoRandomness};

/// The file of the master key, in the data folder.
pub const MASTER_KEY_FILE: &str = "master.key";

/// Why the broker's secrets are not in order.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Others than its owner can read the key.
    #[error(
        "{} can be read by others than its owner (mode {mode:03o}); run `chmod 600 {}`, and make a new key if somebody may have read it",
        path.display(), path.display()
    )]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file does not hold a key.
    #[error(
        "{} does not hold a master key; put the key back from a copy, or start once with --new-master-key to have a new one made (tickets and grants of before are then void)",
        path.display()
    )]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: SecretError,
    },
    /// There is a store, and not the key that it was run with.
    #[error(
        "{} is missing, and the store beside it was run with it: is this the right data folder? Put the key back from a copy, or give it by USHER_MASTER_KEY",
        path.display()
    )]
    Lost {
        /// Where it should be.
        path: PathBuf,
    },
    /// The key is not the one that the store was run with.
    #[error(
        "the master key is not the one that the store in {} was run with: is this the right folder, and the right key? Put the right one back, or start once with --new-master-key (tickets and grants of before are then void)",
        data.display()
    )]
    Other {
        /// The folder.
        data: PathBuf,
    },
    /// The file could not be read or written.
    #[error(
        "cannot keep the master key in {}: check that the folder exists, that this user may write there, and that the disk has room",
        path.display()
    )]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No random numbers.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// A listener beyond loopback without its credential.
    #[error("{listener} on {address} is beyond loopback and would let anybody in; set {setting}")]
    Unlocked {
        /// Which listener.
        listener: &'static str,
        /// Where.
        address: SocketAddr,
        /// What to set.
        setting: &'static str,
    },
    /// Clients beyond loopback cannot be told where the broker is.
    #[error(
        "clients reach {address} from elsewhere, so nodes must know under which name; set public_url, as in https://chat.example.com"
    )]
    NoPublicUrl {
        /// Where clients are listened for.
        address: SocketAddr,
    },
    /// Not a URL that clients could go to.
    #[error("public_url is http:// or https://, a host and perhaps a port, without a path; it is `{given}`")]
    PublicUrl {
        /// What was given.
        given: String,
    },
    /// An origin that no browser would send.
    #[error("allow_origins takes `*` or origins as pages send them; {0}")]
    Origin(OriginError),
}

/// Refuses a listener beyond loopback whose credential is not configured, and what clients could not use.
///
/// # Errors
/// [`KeyError`] that says what to set.
pub fn check_locks(config: &Config) -> Result<(), KeyError> {
    let locks = [
        (
            "the admin listener",
            config.admin,
            config.operator_token.is_some(),
            "operator_token",
        ),
        (
            "the node link",
            config.node_link,
            config.node_token.is_some(),
            "node_token",
        ),
    ];
    for (listener, address, locked, setting) in locks {
        if !address.ip().is_loopback() && !locked {
            return Err(KeyError::Unlocked {
                listener,
                address,
                setting,
            });
        }
    }
    match &config.public_url {
        None if !config.clients.ip().is_loopback() => Err(KeyError::NoPublicUrl {
            address: config.clients,
        }),
        Some(url) if !is_public_url(url) => Err(KeyError::PublicUrl { given: url.clone() }),
        _ => Ok(()),
    }
}

fn is_public_url(url: &str) -> bool {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    rest.is_some_and(|host| {
        let host_like = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        !host.is_empty() && host.len() <= 261 && host.bytes().all(host_like)
    })
}

/// The folder of the store and of the key, made for its owner alone where it is missing.
///
/// # Errors
/// [`KeyError::Io`] when it cannot be made.
pub fn make_data_folder(data: &Path) -> Result<(), KeyError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .map_err(|source| KeyError::Io {
            path: data.to_owned(),
            source,
        })
}

/// The master key in `data`. It is made for a store that has seen no start yet, or when an operator asks for a
/// new one; the old file is kept beside it.
///
/// # Errors
/// [`KeyError`] when it is missing though `store_exists`, cannot be read, is not one, or can be read by others.
pub fn master_key(data: &Path, store_exists: bool, key_is: MasterKeyIs) -> Result<MasterKey, KeyError> {
    let path = data.join(MASTER_KEY_FILE);
    match key_is {
        MasterKeyIs::New => {
            let io = |source| KeyError::Io {
                path: path.clone(),
                source,
            };
            match std::fs::rename(&path, data.join("master.key.old")) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(io(error)),
            }
        }
        MasterKeyIs::Kept if store_exists && !path.exists() => return Err(KeyError::Lost { path }),
        MasterKeyIs::Kept => {}
    }
    read_or_make_master_key(data)
}

/// The file that tells which key the store was run with.
const KEY_ID_FILE: &str = "master.key.id";

/// Refuses a key that is not the one that the store was run with, wherever it comes from: nodes would take none of
/// its tickets, and none of their grants would be believed. Notes which one it is.
///
/// # Errors
/// [`KeyError::Other`] when it is another, and [`KeyError::Io`] when that cannot be noted.
pub fn check_key(data: &Path, key: &MasterKey, key_is: MasterKeyIs) -> Result<(), KeyError> {
    let path = data.join(KEY_ID_FILE);
    let now = key.fingerprint();
    match std::fs::read_to_string(&path) {
        Ok(before) if before.trim() == now => return Ok(()),
        Ok(before) if key_is == MasterKeyIs::Kept && !before.trim().is_empty() => {
            return Err(KeyError::Other {
                data: data.to_owned(),
            });
        }
        _ => {}
    }
    write_new(data, &path, &now).map_err(|source| KeyError::Io { path, source })
}

/// The master key in `data`, made there when there is none yet.
///
/// # Errors
/// [`KeyError`] when it cannot be read, is not one, or can be read by others.
pub fn read_or_make_master_key(data: &Path) -> Result<MasterKey, KeyError> {
    let path = data.join(MASTER_KEY_FILE);
    let io = |source| KeyError::Io {
        path: path.clone(),
        source,
    };
    match std::fs::metadata(&path) {
        Ok(found) => {
            let mode = found.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(KeyError::Readable { path, mode });
            }
            let bytes = std::fs::read(&path).map_err(io)?;
            MasterKey::from_hex(&String::from_utf8_lossy(&bytes))
                .map_err(|source| KeyError::NotAKey { path, source })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = MasterKey::from_bytes(random::bytes()?);
            write_new(data, &path, &key.to_hex()).map_err(io)?;
            tracing::info!(path = %path.display(), "made a master key; keep a copy of it");
            Ok(key)
        }
        Err(error) => Err(io(error)),
    }
}

/// Under another name first: a crash half way must not leave half a key.
fn write_new(data: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    let draft = data.join("master.key.new");
    let _ = std::fs::remove_file(&draft);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    File::open(data)?.sync_all()
}

/// The keys of tickets, by kid. One kid so far; a rotation puts a newer one in front and takes the
/// old one out once its tickets have ended.
#[derive(Debug)]
pub struct Keyring {
    master: MasterKey,
    kids: Vec<&'static str>,
}

impl Keyring {
    /// The keys made from `master`.
    #[must_use]
    pub fn new(master: MasterKey) -> Self {
        Self {
            master,
            kids: vec!["1"],
        }
    }

    /// The kid that new tickets are signed under.
    #[must_use]
    pub fn current_kid(&self) -> &'static str {
        self.kids.first().copied().unwrap_or_default()
    }

    /// The key that new tickets for `node` are signed with.
    #[must_use]
    pub fn current_key(&self, node: &NodeId) -> Key {
        self.master.ticket_key(self.current_kid(), node)
    }

    /// The key for `node` under `kid`, if that kid is known.
    #[must_use]
    pub fn key(&self, kid: &str, node: &NodeId) -> Option<Key> {
        let known = self.kids.contains(&kid);
        known.then(|| self.master.ticket_key(kid, node))
    }

    /// Every key that `node` must know, newest first.
    #[must_use]
    pub fn ticket_keys(&self, node: &NodeId) -> Vec<TicketKey> {
        let keys = self.kids.iter().map(|kid| TicketKey {
            kid: (*kid).to_owned(),
            key: self.master.ticket_key(kid, node),
        });
        keys.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use usher_shared::secret::Token;

    #[test]
    fn a_key_is_made_once_and_kept_for_its_owner_alone() {
        let data = tempfile::tempdir().unwrap();
        let first = read_or_make_master_key(data.path()).unwrap();
        let again = read_or_make_master_key(data.path()).unwrap();
        assert_eq!(first.to_hex(), again.to_hex());
        let mode = std::fs::metadata(data.path().join(MASTER_KEY_FILE)).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_store_without_its_key_is_refused_and_a_new_key_is_made_on_purpose_only() {
        let data = tempfile::tempdir().unwrap();
        let lost = master_key(data.path(), true, MasterKeyIs::Kept).unwrap_err();
        assert!(matches!(lost, KeyError::Lost { .. }));
        assert!(!data.path().join(MASTER_KEY_FILE).exists());
        let first = master_key(data.path(), false, MasterKeyIs::Kept).unwrap();
        let kept = master_key(data.path(), true, MasterKeyIs::Kept).unwrap();
        assert_eq!(first.to_hex(), kept.to_hex());
        let other = master_key(data.path(), true, MasterKeyIs::New).unwrap();
        assert_ne!(first.to_hex(), other.to_hex());
        let old = std::fs::read_to_string(data.path().join("master.key.old")).unwrap();
        assert_eq!(old.trim(), first.to_hex());
    }

    #[test]
    fn another_key_than_the_store_was_run_with_is_refused_wherever_it_comes_from() {
        let data = tempfile::tempdir().unwrap();
        let [first, other] = [1, 2].map(|byte| MasterKey::from_bytes([byte; 32]));
        assert!(check_key(data.path(), &first, MasterKeyIs::Kept).is_ok());
        assert!(check_key(data.path(), &first, MasterKeyIs::Kept).is_ok());
        let refused = check_key(data.path(), &other, MasterKeyIs::Kept);
        assert!(matches!(refused, Err(KeyError::Other { .. })));
        assert!(check_key(data.path(), &other, MasterKeyIs::New).is_ok());
        assert!(check_key(data.path(), &other, MasterKeyIs::Kept).is_ok());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        let data = tempfile::tempdir().unwrap();
        read_or_make_master_key(data.path()).unwrap();
        let path = data.path().join(MASTER_KEY_FILE);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = read_or_make_master_key(data.path()).unwrap_err();
        assert!(matches!(error, KeyError::Readable { mode: 0o640, .. }));
        assert!(error.to_string().contains("chmod 600"));
    }

    #[test]
    fn a_damaged_key_is_refused_and_not_replaced() {
        for damaged in [&b"abc"[..], b"\xa5\xa5", b""] {
            let data = tempfile::tempdir().unwrap();
            let path = data.path().join(MASTER_KEY_FILE);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .unwrap();
            file.write_all(damaged).unwrap();
            assert!(matches!(
                read_or_make_master_key(data.path()),
                Err(KeyError::NotAKey { .. })
            ));
            assert_eq!(std::fs::read(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn a_listener_beyond_loopback_needs_its_token() {
        let token = || Some(Token::new("0123456789abcdef").unwrap().into());
        let anywhere = SocketAddr::from(([0, 0, 0, 0], 1));
        let mut config = Config::new(PathBuf::from("x"));
        assert!(check_locks(&config).is_ok());
        config.admin = anywhere;
        assert!(
            check_locks(&config)
                .unwrap_err()
                .to_string()
                .contains("operator_token")
        );
        config.operator_token = token();
        config.node_link = anywhere;
        assert!(
            check_locks(&config)
                .unwrap_err()
                .to_string()
                .contains("node_token")
        );
        config.node_token = token();
        config.clients = anywhere;
        assert!(
            check_locks(&config)
                .unwrap_err()
                .to_string()
                .contains("public_url")
        );
        config.public_url = Some("https://chat.example.com".to_owned());
        assert!(check_locks(&config).is_ok());
    }

    #[test]
    fn a_public_url_with_more_than_a_host_is_refused() {
        for bad in [
            "chat.example.com",
            "ws://h",
            "http://",
            "http://h/",
            "http://h\r\nX: y",
            "http://u@h",
        ] {
            let config = Config {
                public_url: Some(bad.to_owned()),
                ..Config::new(PathBuf::from("x"))
            };
            assert!(
                matches!(check_locks(&config), Err(KeyError::PublicUrl { .. })),
                "{bad}"
            );
        }
    }
}
