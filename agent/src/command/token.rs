//! `weft token`.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;

use super::control::{CA, CERTIFICATE, KEY};
use crate::output::print;

/// What a hub gives to those who may join or operate the fabric.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Prints the join token for agents; makes the hub's certificate authority if there is none yet.
    Show {
        /// The hub's state directory.
        #[arg(long, env = "WEFT_HUB_STATE_DIR", default_value = "/var/lib/weft/hub")]
        state_dir: PathBuf,
    },
    /// Writes a client certificate for the control service on the hub's TCP port: `ca.pem`,
    /// `admin.pem` and `admin.key`.
    Admin {
        /// Whose it is; stands in the certificate.
        name: String,
        /// Directory to write to; made if missing. What an earlier run wrote there is replaced.
        #[arg(long, default_value = ".")]
        out: PathBuf,
        /// Days that it is valid.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=365))]
        days: u64,
        /// The hub's state directory.
        #[arg(long, env = "WEFT_HUB_STATE_DIR", default_value = "/var/lib/weft/hub")]
        state_dir: PathBuf,
    },
}

impl Command {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Show { state_dir } => print(&format!("{}\n", weft_hub::show_token(&state_dir)?)),
            Self::Admin { name, out, days, state_dir } => {
                let ttl = Duration::from_secs(days * 24 * 3600);
                let (identity, ca) = weft_hub::issue_admin(&state_dir, &name, ttl)?;
                make_directory(&out)?;
                write(&out.join(CA), &ca)?;
                write(&out.join(CERTIFICATE), &identity.certificate)?;
                write(&out.join(KEY), &identity.key)
            }
        }
    }
}

fn make_directory(path: &Path) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make {}", path.display()))
}

/// Writes a file that only its owner can read, whole or not at all.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let unready = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&unready);
    file.and_then(|mut f| f.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&unready, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
