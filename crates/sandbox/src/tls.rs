//! TLS for private servers: certificate authorities of a test's own.

use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::ports::free_port;
use crate::redis::{RedisOptions, RedisServer};

/// How often another port is tried for TLS.
const PORT_ATTEMPTS: usize = 5;

/// A certificate authority, with a key and a certificate for `127.0.0.1` and `localhost` that it has signed.
#[derive(Debug)]
pub struct TlsAuthority {
    /// Its own certificate (PEM).
    pub ca: String,
    /// The certificate that it has signed (PEM).
    pub certificate: String,
    /// The key of that (PEM).
    pub key: String,
}

impl TlsAuthority {
    /// A new one of this name.
    ///
    /// # Errors
    /// When keys can't be generated.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let ca = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let server = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, &issuer)?.pem();
        Ok(Self { ca, certificate, key: key.serialize_pem() })
    }

    /// The lines of a Redis configuration with this certificate, but for the port: name and value each. The files are written to
    /// the folder, which must outlive the server.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn redis_lines(&self, folder: &Path) -> Result<Vec<String>> {
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            anyhow::Ok(path.display().to_string())
        };
        Ok(vec![
            format!("tls-ca-cert-file {}", write("ca.pem", &self.ca)?),
            format!("tls-cert-file {}", write("server.pem", &self.certificate)?),
            format!("tls-key-file {}", write("server.key", &self.key)?),
            "tls-auth-clients no".to_owned(),
        ])
    }
}

impl RedisServer {
    /// Starts a server that speaks TLS on a port of its own, and returns that port too.
    ///
    /// # Errors
    /// As [`RedisServer::start`]; when `redis-server` is built without TLS.
    pub async fn start_with_tls(options: &RedisOptions, lines: &[String]) -> Result<(Self, u16)> {
        let mut refused = None;
        for _ in 0..PORT_ATTEMPTS {
            let port = free_port()?;
            let mut options = options.clone();
            options.extra.extend(lines.iter().cloned().chain([format!("tls-port {port}")]));
            match Self::start(options).await {
                Ok(server) => return Ok((server, port)),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.context("no attempt was made")?)
            .context("starting Redis with TLS; is redis-server built with it?")
    }
}
