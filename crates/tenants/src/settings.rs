//! How the tenant service is reached, checked before the first request: the API key must only ever go,
//! encrypted, to the configured host.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

/// The header that carries the service's key.
pub(crate) const API_KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// The name under which balances' databases are associated, unless configured.
pub const DEFAULT_SERVICE: &str = "ledger";
/// Time to connect, TLS included, unless configured.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for a whole call, unless configured. Below the interval of polls (10 s), so that they don't pile up.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(8);
/// Largest answer read, unless configured: a list of some 100,000 tenants.
pub const DEFAULT_MAX_BODY_BYTES: usize = 10 * 1024 * 1024;
/// Further attempts within one call, unless configured.
pub const DEFAULT_RETRIES: u32 = 2;
/// Consecutive failures until the breaker opens, unless configured.
pub const DEFAULT_BREAKER_THRESHOLD: u32 = 5;
/// Time the breaker stays open, unless configured.
pub const DEFAULT_BREAKER_TIMEOUT: Duration = Duration::from_secs(30);

/// Settings of a [`crate::ServiceDirectory`]. `Debug` doesn't show the key, nor credentials in the URL.
#[derive(Clone)]
pub struct ServiceSettings {
    /// Address of the service, to which `/v1/tenants/…` is added. No credentials, query or fragment.
    pub base_url: Url,
    /// The service key, sent as `X-API-Key`.
    pub api_key: SecretString,
    /// Name of the service whose associations are asked for.
    pub service: String,
    /// Whether `http://` is accepted. The key and all database passwords then travel in the clear.
    pub allow_plain_http: bool,
    /// Time to connect, TLS included.
    pub connect_timeout: Duration,
    /// Time for one call as a whole: all attempts, the pauses between them, and the body.
    pub request_timeout: Duration,
    /// Largest answer read, in bytes.
    pub max_body_bytes: usize,
    /// Further attempts within one call, after transient failures only.
    pub retries: u32,
    /// Consecutive failed requests until the circuit breaker opens; 0 switches it off.
    pub breaker_threshold: u32,
    /// Time the breaker stays open before it lets a probe through.
    pub breaker_timeout: Duration,
    /// PEM file with the only authorities to trust; without it the system's are trusted.
    pub root_ca: Option<PathBuf>,
}

impl ServiceSettings {
    /// Settings with the defaults of this module.
    pub fn new(base_url: Url, api_key: SecretString) -> Self {
        Self {
            base_url,
            api_key,
            service: DEFAULT_SERVICE.to_owned(),
            allow_plain_http: false,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
            max_body_bytes: DEFAULT_MAX_BODY_BYTES,
            retries: DEFAULT_RETRIES,
            breaker_threshold: DEFAULT_BREAKER_THRESHOLD,
            breaker_timeout: DEFAULT_BREAKER_TIMEOUT,
            root_ca: None,
        }
    }

    /// Checks all of it but the files.
    ///
    /// # Errors
    /// The first value that can't be used.
    pub fn validate(&self) -> Result<(), SettingsError> {
        self.validate_url()?;
        if self.service.is_empty() || self.service == "." || self.service == ".." {
            // The dots would be dropped from the path, and another resource be asked.
            return Err(SettingsError::Service(self.service.clone()));
        }
        for (field, value) in [
            ("connect_timeout", self.connect_timeout),
            ("request_timeout", self.request_timeout),
            ("breaker_timeout", self.breaker_timeout),
        ] {
            if value.is_zero() {
                return Err(SettingsError::Zero { field });
            }
        }
        if self.max_body_bytes == 0 {
            return Err(SettingsError::Zero { field: "max_body_bytes" });
        }
        self.api_key_header().map(|_| ())
    }

    fn validate_url(&self) -> Result<(), SettingsError> {
        let refuse = |reason| Err(SettingsError::BaseUrl { url: shown(&self.base_url), reason });
        match self.base_url.scheme() {
            "https" => {}
            "http" if self.allow_plain_http => {}
            "http" => {
                return refuse("is not encrypted: use https://, or allow plain HTTP explicitly");
            }
            _ => {
                return refuse(
                    "has an unknown scheme: allowed are https:// and, if allowed explicitly, http://",
                );
            }
        }
        if self.base_url.host_str().is_none_or(str::is_empty) {
            return refuse("has no host");
        }
        if !self.base_url.username().is_empty() || self.base_url.password().is_some() {
            return refuse("carries credentials: the service takes an API key only");
        }
        if self.base_url.query().is_some() || self.base_url.fragment().is_some() {
            return refuse("has a query or a fragment: allowed is a scheme, a host, a port and a path");
        }
        Ok(())
    }

    fn api_key_header(&self) -> Result<HeaderValue, SettingsError> {
        let key = self.api_key.expose_secret();
        if key.is_empty() {
            return Err(SettingsError::ApiKey("is empty"));
        }
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SettingsError::ApiKey("has white space or other than ASCII characters"));
        }
        let mut value =
            HeaderValue::from_str(key).map_err(|_| SettingsError::ApiKey("does not fit in a header"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// The HTTP client: no redirects (they could carry the key to another host), no proxies from the
    /// environment (likewise), no plain HTTP unless allowed.
    pub(crate) fn client(&self) -> Result<reqwest::Client, SettingsError> {
        let headers = HeaderMap::from_iter([(API_KEY_HEADER, self.api_key_header()?)]);
        reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls()?)
            .https_only(!self.allow_plain_http)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(self.connect_timeout)
            .user_agent(concat!("balance-sync/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .build()
            .map_err(|error| SettingsError::Client(error.without_url().to_string()))
    }

    /// TLS by ring, given explicitly: a library has no business installing a process-wide default.
    fn tls(&self) -> Result<rustls::ClientConfig, SettingsError> {
        let roots = match &self.root_ca {
            Some(path) => roots_of_file(path)?,
            // No certificate will be looked at, so a machine without authorities is fine.
            None if self.base_url.scheme() == "http" => rustls::RootCertStore::empty(),
            None => roots_of_system()?,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| SettingsError::Client(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}

fn roots_of_file(path: &Path) -> Result<rustls::RootCertStore, SettingsError> {
    let refuse = |reason: String| SettingsError::RootCa { path: path.to_owned(), reason };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| refuse(error.to_string()))? {
        let certificate = certificate.map_err(|error| refuse(error.to_string()))?;
        roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
    }
    if roots.is_empty() { Err(refuse("holds no certificate".to_owned())) } else { Ok(roots) }
}

fn roots_of_system() -> Result<rustls::RootCertStore, SettingsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = rustls::RootCertStore::empty();
    // System stores hold certificates that webpki refuses; the others are no worse for it.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reason = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(SettingsError::NoSystemRoots(reason));
    }
    Ok(roots)
}

impl fmt::Debug for ServiceSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceSettings")
            .field("base_url", &shown(&self.base_url))
            .field("service", &self.service)
            .field("allow_plain_http", &self.allow_plain_http)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("max_body_bytes", &self.max_body_bytes)
            .field("retries", &self.retries)
            .field("breaker_threshold", &self.breaker_threshold)
            .field("breaker_timeout", &self.breaker_timeout)
            .field("root_ca", &self.root_ca)
            .finish_non_exhaustive()
    }
}

/// Why settings can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The address.
    #[error("tenant service URL {url} {reason}")]
    BaseUrl {
        /// The address, without what could be secret.
        url: String,
        /// What is wrong and what is allowed.
        reason: &'static str,
    },
    /// The key, which is not shown.
    #[error("tenant service API key {0}: allowed are visible ASCII characters")]
    ApiKey(&'static str),
    /// The name of the service.
    #[error("service name {0:?} is not usable: allowed is any text but the empty one, `.` and `..`")]
    Service(String),
    /// A value that must not be 0.
    #[error("{field} is 0: it must be more than that")]
    Zero {
        /// The setting.
        field: &'static str,
    },
    /// The file with authorities.
    #[error("root CA file {}: {reason}", path.display())]
    RootCa {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The machine trusts no certificate.
    #[error("no usable root certificates on this system ({0}): install them, or set a root CA file")]
    NoSystemRoots(String),
    /// The client can't be built.
    #[error("HTTP client can not be built: {0}")]
    Client(String),
}

/// A URL as it may be shown: without credentials, query and fragment.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // These fail only for URLs that can't have credentials; such a one is cut to its scheme to be safe.
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return format!("{}:…", url.scheme());
    }
    url.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const KEY: &str = "key-hunter2";

    fn settings(url: &str) -> ServiceSettings {
        ServiceSettings::new(url.parse().unwrap(), KEY.into())
    }

    #[test]
    fn only_https_unless_allowed() {
        settings("https://tenants.internal/base/").validate().unwrap();
        let mut plain = settings("http://tenants.internal");
        assert!(plain.validate().unwrap_err().to_string().contains("allow plain HTTP"));
        plain.allow_plain_http = true;
        plain.validate().unwrap();
        for url in ["ftp://h/", "file:///etc/passwd", "unix:/run/x", "data:text/plain,x"] {
            let mut other = settings(url);
            other.allow_plain_http = true;
            assert!(other.validate().unwrap_err().to_string().contains("scheme"), "{url}");
        }
    }

    #[test]
    fn credentials_in_the_url_are_refused_and_not_shown() {
        for url in
            ["https://me:hunter2@h/", "https://hunter2@h/", "https://h/?key=hunter2", "https://h/#hunter2"]
        {
            let settings = settings(url);
            let error = settings.validate().unwrap_err();
            let shown = format!("{error} {error:?} {settings:?}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        let opaque = settings("mailto:hunter2@h");
        assert!(!format!("{opaque:?} {}", opaque.validate().unwrap_err()).contains("hunter2"));
    }

    #[test]
    fn the_key_is_checked_and_not_shown() {
        for key in ["", "hunter2 ", "hunter2\n", "hünter2"] {
            let mut settings = settings("https://h");
            settings.api_key = key.into();
            let error = settings.validate().unwrap_err();
            assert!(!format!("{error} {error:?} {settings:?}").contains("nter2"), "{error}");
        }
    }

    #[test]
    fn zeros_and_dots_are_refused() {
        let refused = |change: fn(&mut ServiceSettings)| {
            let mut settings = settings("https://h");
            change(&mut settings);
            settings.validate().unwrap_err().to_string()
        };
        assert!(refused(|s| s.connect_timeout = Duration::ZERO).contains("connect_timeout"));
        assert!(refused(|s| s.request_timeout = Duration::ZERO).contains("request_timeout"));
        assert!(refused(|s| s.breaker_timeout = Duration::ZERO).contains("breaker_timeout"));
        assert!(refused(|s| s.max_body_bytes = 0).contains("max_body_bytes"));
        assert!(refused(|s| s.service = "..".into()).contains(".."));
        assert!(refused(|s| s.service = String::new()).contains("service"));
    }

    #[test]
    fn a_root_file_must_hold_certificates() {
        let mut settings = settings("https://h");
        settings.root_ca = Some("/does/not/exist.pem".into());
        assert!(settings.client().unwrap_err().to_string().contains("/does/not/exist.pem"));
        settings.root_ca = Some("Cargo.toml".into());
        assert!(settings.client().unwrap_err().to_string().contains("no certificate"));
    }
}
