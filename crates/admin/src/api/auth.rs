//! Who asks, and what they may do: tokens, roles, and the guard in front of every path of the API.
//!
//! - Without tokens, which the configuration allows on a loopback address alone, every client that reaches the interface is its
//!   operator, as long as they came by a name of this machine: a web page that has its own name point here has not.
//! - With tokens: `Authorization: Bearer …`, or the cookie of a session that `POST /api/v1/session` opened with a token
//!   (`sessions`). Tokens are compared in constant time, and a wrong token or session costs time, wherever it is shown: an address
//!   can try as many per second as it may have connections. None is refused unread, so that right ones are served while wrong
//!   ones pour in.
//! - Tokens may have names, and a proxy that is trusted by its address may name who asks: the log of actions and the screens show
//!   the name. The role is the token's in any case.
//! - What changes something has to come with a Bearer token or with the header `X-Balance-Sync: 1`, which no other site's
//!   page can send.

use std::{
    borrow::Cow,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use actix_web::{
    FromRequest, HttpMessage, HttpRequest, ResponseError,
    body::MessageBody,
    dev::{Payload, ServiceRequest, ServiceResponse},
    http::{Method, StatusCode, header},
    middleware::Next,
    web::Data,
};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use super::{
    problem::Problem,
    sessions::{Found, SessionId, SessionKeeper},
};

/// Longest name of who asks, in bytes.
pub const LONGEST_NAME: usize = 64;
/// The cookie of a session where the interface is reached by plain HTTP; by HTTPS its name gets a prefix.
const COOKIE: &str = "balance_sync_session";
/// The cookie of former releases. It held the token itself.
pub(super) const FORMER_COOKIE: &str = "balance_sync_token";
/// In which a proxy says below which path it has the interface.
const PREFIX: &str = "x-forwarded-prefix";
/// Longest prefix that becomes the path of a cookie.
const LONGEST_PREFIX: usize = 128;
/// What a request of our own pages carries.
const OWN_PAGE: &str = "x-balance-sync";
/// A wrong token is answered after this. Right ones never wait.
const WRONG_TOKEN_DELAY: Duration = Duration::from_secs(1);
/// How often it is looked whether the session of an event stream has ended.
const SESSION_LOOKS: Duration = Duration::from_secs(1);
/// Wrong tokens are logged this often, with their number.
const WRONG_LOGGED_EVERY: Duration = Duration::from_secs(60);

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Nothing.
    None,
    /// Look, but not at amounts.
    Reader,
    /// Everything.
    Operator,
}

impl Role {
    /// The name in answers.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Reader => "reader",
            Self::Operator => "operator",
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Who {
    /// What they may do.
    pub(crate) role: Role,
    /// The name in the log of actions.
    pub(crate) name: Cow<'static, str>,
    /// The session that they showed, if it was one.
    pub(super) session: Option<Session>,
}

/// A session that was shown and is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) id: Arc<SessionId>,
    /// Why Redis could not be asked whether it still is.
    unconfirmed: Option<String>,
}

impl Who {
    pub(super) const UNKNOWN: Self = Self { role: Role::None, name: Cow::Borrowed("unknown"), session: None };
    pub(super) const LOOPBACK: Self =
        Self { role: Role::Operator, name: Cow::Borrowed("anonymous@loopback"), session: None };

    /// Whether amounts are hidden from them.
    pub(super) fn amounts_hidden(&self) -> bool {
        self.role < Role::Operator
    }
}

impl From<&NamedToken> for Who {
    fn from(token: &NamedToken) -> Self {
        Self { role: token.role, name: Cow::Owned(token.name.clone()), session: None }
    }
}

impl FromRequest for Who {
    type Error = Problem;
    type Future = std::future::Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        // The guard has put it there.
        std::future::ready(request.extensions().get().cloned().ok_or_else(Problem::token_needed))
    }
}

/// A token whose bearer has a name.
#[derive(Debug, Clone)]
pub struct NamedToken {
    /// The name in the log of actions.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// The token.
    pub token: SecretString,
}

/// Proxies that name who asks.
#[derive(Debug, Clone)]
pub struct TrustedProxies {
    /// The header that has the name.
    pub header: String,
    /// Their addresses.
    pub addresses: Vec<IpAddr>,
}

impl NamedToken {
    fn is(&self, other: &Self) -> bool {
        self.name == other.name
            && self.role == other.role
            && self.token.expose_secret() == other.token.expose_secret()
    }
}

/// The tokens in force. Empty = the interface is open to every client that reaches it.
#[derive(Clone, Default)]
struct Tokens {
    list: Arc<[NamedToken]>,
    /// Since when, in seconds since 1970.
    since: f64,
}

impl Tokens {
    fn new(list: Arc<[NamedToken]>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Self { list, since }
    }
}

/// Who may do what.
#[derive(Clone, Default)]
pub struct Access {
    tokens: Arc<watch::Sender<Tokens>>,
    sessions: Option<Arc<SessionKeeper>>,
    proxies: Option<Arc<TrustedProxies>>,
    /// The worker is a shadow: nothing is changed through it.
    only_looks: bool,
    wrong: Arc<Mutex<Wrong>>,
}

/// Wrong tokens since they were last logged.
#[derive(Debug, Default)]
struct Wrong {
    logged: Option<Instant>,
    since: u64,
}

impl Wrong {
    /// Counts one more, and returns how many the log is due to name.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.since += 1;
        if self.logged.is_some_and(|at| now.duration_since(at) < WRONG_LOGGED_EVERY) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("tokens", &self.tokens.borrow().list.len())
            .field("proxies", &self.proxies)
            .finish_non_exhaustive()
    }
}

impl Access {
    /// These tokens: one for reading, one for operators, and those with names.
    #[must_use]
    pub fn new(
        read: Option<SecretString>,
        operator: Option<SecretString>,
        named: impl IntoIterator<Item = NamedToken>,
    ) -> Self {
        let tokens = Arc::new(watch::Sender::new(Tokens::new(Self::list(read, operator, named))));
        Self { tokens, ..Self::default() }
    }

    fn list(
        read: Option<SecretString>,
        operator: Option<SecretString>,
        named: impl IntoIterator<Item = NamedToken>,
    ) -> Arc<[NamedToken]> {
        let token = |name: &str, role, token: Option<SecretString>| {
            token.map(|token| NamedToken { name: name.to_owned(), role, token })
        };
        let unnamed =
            [token("operator_token", Role::Operator, operator), token("read_token", Role::Reader, read)];
        unnamed.into_iter().flatten().chain(named).collect()
    }

    /// Takes these tokens from now on. Sessions that were opened with others end, and so do event streams; who may still look
    /// connects again. Returns whether anything has changed.
    ///
    /// # Errors
    /// With the reason, when the interface would become open, or need a token at once: that takes a restart, as what it listens on was
    /// chosen by that.
    pub fn replace_tokens(
        &self,
        read: Option<SecretString>,
        operator: Option<SecretString>,
        named: impl IntoIterator<Item = NamedToken>,
    ) -> Result<bool, &'static str> {
        let list = Self::list(read, operator, named);
        let former = Arc::clone(&self.tokens.borrow().list);
        if list.is_empty() != former.is_empty() {
            return Err("whether tokens are needed changes with a restart only");
        }
        if list.len() == former.len() && list.iter().zip(former.iter()).all(|(one, other)| one.is(other)) {
            return Ok(false);
        }
        self.tokens.send_replace(Tokens::new(list));
        Ok(true)
    }

    /// The same with sessions.
    #[must_use]
    pub fn with_sessions(self, sessions: SessionKeeper) -> Self {
        Self { sessions: Some(Arc::new(sessions)), ..self }
    }

    /// The sessions, where tokens are needed.
    pub(super) fn sessions(&self) -> Option<&SessionKeeper> {
        self.sessions.as_deref().filter(|_| self.is_required())
    }

    /// The same behind proxies that name who asks.
    #[must_use]
    pub fn behind(self, proxies: Option<TrustedProxies>) -> Self {
        Self { proxies: proxies.map(Arc::new), ..self }
    }

    /// The same on a worker that only looks, if it is one: nothing is changed through it, whoever asks.
    #[must_use]
    pub fn only_looking(self, only_looks: bool) -> Self {
        Self { only_looks, ..self }
    }

    /// Whether a token is needed.
    #[must_use]
    pub fn is_required(&self) -> bool {
        !self.tokens.borrow().list.is_empty()
    }

    /// Whose token it is. Takes the same time for all tokens of a length.
    fn bearer(&self, token: &str) -> Option<Who> {
        // All are always compared.
        let same =
            |known: &NamedToken| bool::from(known.token.expose_secret().as_bytes().ct_eq(token.as_bytes()));
        let tokens = self.tokens.borrow();
        tokens
            .list
            .iter()
            .fold(None, |found, known| if same(known) { found.or(Some(known.into())) } else { found })
    }

    /// Whose session it is. `in_use`: this counts as a use of it.
    ///
    /// # Errors
    /// When Redis can't be asked, and has not said so a moment ago.
    async fn of_session(&self, id: Arc<SessionId>, in_use: bool) -> Result<Option<Who>, Problem> {
        let Some(keeper) = self.sessions() else { return Ok(None) };
        let (session, unconfirmed) = match keeper.find(&id, in_use).await {
            Found::Confirmed(session) => (session, None),
            Found::Unconfirmed(session, error) => (session, Some(error)),
            Found::None => return Ok(None),
            Found::Unknown(error) => return Err(Problem::sessions_away(&error)),
        };
        let (whose, since) = {
            let tokens = self.tokens.borrow();
            let is_of = |known: &&NamedToken| id.is_of(&session, known.token.expose_secret());
            (tokens.list.iter().find(is_of).map(Who::from), tokens.since)
        };
        let Some(who) = whose else {
            // Its token may be one that this worker is yet to learn of. Otherwise it is one that has been taken away.
            if session.created < since && unconfirmed.is_none() && keeper.end(&[id.key()]).await.is_ok() {
                let name = balance_sync_domain::printable(&session.record.name).to_string();
                tracing::info!(name, "a session ended, as its token is no longer valid");
            }
            return Ok(None);
        };
        Ok(Some(Who { session: Some(Session { id, unconfirmed }), ..who }))
    }

    /// Returns when this user may no longer look: the tokens have changed, or their session has ended. Looking on is no use of it.
    pub(super) async fn ended(&self, who: &Who) {
        let mut tokens = self.tokens.subscribe();
        let session = async {
            let Some(session) = &who.session else { return std::future::pending().await };
            loop {
                tokio::time::sleep(SESSION_LOOKS).await;
                match self.of_session(Arc::clone(&session.id), false).await {
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return,
                }
            }
        };
        tokio::select! {
            _ = tokens.changed() => {}
            () = session => {}
        }
    }

    /// The name that a trusted proxy gives who asks.
    fn proxied(&self, request: &HttpRequest) -> Option<String> {
        let proxies = self.proxies.as_ref()?;
        let peer = request.peer_addr()?.ip().to_canonical();
        let mut names = request.headers().get_all(proxies.header.as_str());
        let name = names.next()?.to_str().ok()?.trim();
        // A second one is not the proxy's.
        let fits = names.next().is_none()
            && !name.is_empty()
            && name.len() <= LONGEST_NAME
            && name.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        (fits && proxies.addresses.contains(&peer)).then(|| name.to_owned())
    }

    /// The same user, under the name that a trusted proxy gives.
    fn named(&self, request: &HttpRequest, who: Who) -> Who {
        match self.proxied(request) {
            Some(name) if who.role > Role::None => Who { name: Cow::Owned(name), ..who },
            _ => who,
        }
    }

    /// Whose token this is, when a user signs in with it.
    ///
    /// # Errors
    /// When it is not valid, after a while.
    pub(super) async fn sign_in(&self, request: &HttpRequest, token: &str) -> Result<Who, Problem> {
        match self.bearer(token) {
            Some(who) => Ok(self.named(request, who)),
            None => {
                self.turn_away(request).await;
                Err(Problem::wrong_token())
            }
        }
    }

    /// Makes a wrong token cost time.
    async fn turn_away(&self, request: &HttpRequest) {
        let due = self.wrong.lock().unwrap_or_else(PoisonError::into_inner).count(Instant::now());
        if let Some(attempts) = due {
            let peer = request.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
            tracing::warn!(attempts, last_from = peer, "wrong tokens were shown to the admin interface");
        }
        tokio::time::sleep(WRONG_TOKEN_DELAY).await;
    }

    /// Who sends this request.
    ///
    /// # Errors
    /// When the token shown is not valid, or when none is needed and the request came by a foreign name.
    pub(crate) async fn who(&self, request: &HttpRequest) -> Result<Who, Problem> {
        if !self.is_required() {
            return match by_own_name(request) {
                true => Ok(self.named(request, Who::LOOPBACK)),
                false => Err(Problem::foreign_host()),
            };
        }
        let who = match shown(request) {
            Shown::Nothing => return Ok(Who::UNKNOWN),
            Shown::Token(token) => self.bearer(&token).ok_or_else(Problem::wrong_token),
            Shown::Session(id) => {
                let who = match SessionId::parse(&id) {
                    Some(id) => self.of_session(Arc::new(id), true).await?,
                    None => None,
                };
                // A cookie outlives its session; its user signs in again.
                who.ok_or_else(Problem::token_needed).or(Ok(Who::UNKNOWN))
            }
        };
        match who {
            Ok(who) if who.role > Role::None => Ok(self.named(request, who)),
            refused => {
                self.turn_away(request).await;
                refused
            }
        }
    }

    /// Whether the sender may read.
    ///
    /// # Errors
    /// As [`Access::who`], and when no token was shown.
    pub(crate) async fn may_read(&self, request: &HttpRequest) -> Result<(), Problem> {
        if self.who(request).await?.role >= Role::Reader { Ok(()) } else { Err(Problem::token_needed()) }
    }
}

/// What a request shows of its sender.
enum Shown {
    Nothing,
    Token(String),
    Session(String),
}

fn shown(request: &HttpRequest) -> Shown {
    if let Some(value) = request.headers().get(header::AUTHORIZATION) {
        let bearer = value.to_str().ok().and_then(|value| value.split_once(' '));
        return match bearer {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Shown::Token(token.trim().to_owned())
            }
            _ => Shown::Nothing,
        };
    }
    match cookie(request, Cookie::of(request).name) {
        Some(id) => Shown::Session(id.to_owned()),
        None => Shown::Nothing,
    }
}

/// A cookie of a request.
pub(super) fn cookie<'a>(request: &'a HttpRequest, wanted: &str) -> Option<&'a str> {
    let cookies = request.headers().get_all(header::COOKIE).filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find_map(|(name, value)| (name == wanted).then_some(value))
}

/// The cookie of a session, as fits the way on which a request came. The prefixes of its name keep other hosts of the domain, and
/// plain HTTP, from setting one in its place.
pub(super) struct Cookie<'a> {
    name: &'static str,
    path: &'a str,
    secure: &'static str,
}

impl<'a> Cookie<'a> {
    pub(super) fn of(request: &'a HttpRequest) -> Self {
        let prefix = request.headers().get(PREFIX).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let prefix = prefix.trim_end_matches('/');
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"/._~-".contains(&byte);
        let is_prefix = prefix.starts_with('/') && prefix.len() <= LONGEST_PREFIX && prefix.bytes().all(fits);
        // The interface itself speaks plain HTTP; a proxy that adds TLS in front of it says so.
        let secure = request.connection_info().scheme() == "https";
        let (name, path) = match (secure, is_prefix) {
            // Its path is `/` by definition.
            (true, false) => ("__Host-balance_sync_session", "/"),
            (true, true) => ("__Secure-balance_sync_session", prefix),
            (false, false) => (COOKIE, "/"),
            (false, true) => (COOKIE, prefix),
        };
        Self { name, path, secure: if secure { "; Secure" } else { "" } }
    }

    /// Has the browser keep this session.
    pub(super) fn keep(&self, id: &SessionId, lasts: Duration) -> String {
        self.text(self.name, &id.expose(), lasts.as_secs())
    }

    /// Has the browser forget its session.
    pub(super) fn forget(&self) -> String {
        self.text(self.name, "", 0)
    }

    /// Has the browser forget what former releases set.
    pub(super) fn forget_former(&self) -> String {
        Cookie { path: "/", ..*self }.text(FORMER_COOKIE, "", 0)
    }

    fn text(&self, name: &str, value: &str, seconds: u64) -> String {
        let Self { path, secure, .. } = self;
        format!("{name}={value}; Max-Age={seconds}; Path={path}; HttpOnly; SameSite=Strict{secure}")
    }
}

/// Whether the request names this machine as an address or as `localhost`: a name that another party chose may be one
/// that a web page has had pointed here.
fn by_own_name(request: &HttpRequest) -> bool {
    // The header itself, and no other that says what it was: such a page could send those.
    let host = request.headers().get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

/// The guard of the API: no request gets past it without the right that the method asks for.
pub(super) async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let access = request.app_data::<Data<Access>>().cloned().unwrap_or_default();
    let who = match access.who(request.request()).await {
        Ok(who) => who,
        // Who has a wrong header must still be able to ask what is needed, and to sign out.
        Err(problem)
            if is_session(&request)
                && access.is_required()
                && problem.status_code() == StatusCode::UNAUTHORIZED
                && request.method() != Method::POST =>
        {
            tracing::debug!(%problem, "asked for the session with a wrong token");
            Who::UNKNOWN
        }
        Err(problem) => return Err(problem.into()),
    };
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !is_session(&request) {
        if who.role == Role::None {
            return Err(Problem::token_needed().into());
        }
        if !reads && who.role < Role::Operator {
            return Err(Problem::not_allowed().into());
        }
    }
    if !reads && !is_own_page(request.request()) {
        return Err(Problem::foreign_page().into());
    }
    if !reads && !is_session(&request) && access.only_looks {
        return Err(Problem::shadow().into());
    }
    let unconfirmed = who.session.as_ref().and_then(|session| session.unconfirmed.as_deref());
    if !reads && let Some(error) = unconfirmed {
        return Err(Problem::sessions_away(error).into());
    }
    request.extensions_mut().insert(who);
    next.call(request).await
}

fn is_session(request: &ServiceRequest) -> bool {
    request.path() == "/api/v1/session"
}

/// Whether no other site's page can have sent this.
fn is_own_page(request: &HttpRequest) -> bool {
    let bearer = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.len() > 7 && value[..7].eq_ignore_ascii_case("bearer "));
    bearer || request.headers().get(OWN_PAGE).is_some_and(|value| value == "1")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use actix_web::test::TestRequest;

    use super::*;

    const READ: &str = "read-token-of-the-test";
    const OPERATOR: &str = "operator-token-of-the-test";

    fn access() -> Access {
        Access::new(Some(READ.to_owned().into()), Some(OPERATOR.to_owned().into()), [])
    }

    fn request(headers: &[(&'static str, &str)]) -> HttpRequest {
        let request = TestRequest::with_uri("/api/v1/overview");
        headers.iter().fold(request, |request, pair| request.insert_header(*pair)).to_http_request()
    }

    #[actix_rt::test]
    async fn a_token_is_whose_it_is_in_the_header_alone() {
        let access = access();
        for (headers, role) in [
            (vec![("authorization", format!("Bearer {READ}"))], Role::Reader),
            (vec![("authorization", format!("bearer {OPERATOR}"))], Role::Operator),
            (vec![("cookie", format!("{COOKIE}={OPERATOR}"))], Role::None),
            (vec![("cookie", format!("{FORMER_COOKIE}={OPERATOR}"))], Role::None),
            (vec![], Role::None),
        ] {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(access.who(&request(&headers)).await.unwrap().role, role, "{headers:?}");
        }
        for wrong in [&READ[1..], &format!("{READ}x"), "", OPERATOR.to_uppercase().as_str()] {
            let header = format!("Bearer {wrong}");
            let answer = access.who(&request(&[("authorization", &header)])).await;
            assert!(answer.is_err(), "{wrong:?} is not valid");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_tokens_cost_time_wherever_they_are_shown_and_right_ones_do_not() {
        let access = access();
        let took = async |headers: &[(&'static str, &str)]| {
            let begun = tokio::time::Instant::now();
            let answer = access.who(&request(headers)).await;
            (answer.map_or(Role::None, |who| who.role), begun.elapsed())
        };
        let cookie = format!("{COOKIE}=wrong");
        let wrong = [("authorization", "Bearer wrong"), ("cookie", cookie.as_str())];
        for header in wrong {
            assert_eq!(took(&[header]).await, (Role::None, WRONG_TOKEN_DELAY), "{header:?}");
        }
        let asked = request(&wrong[..1]);
        let signing_in = access.sign_in(&asked, "wrong");
        assert_eq!(signing_in.await.unwrap_err().status(), 401);
        // However many wrong ones are under way, a right one is served at once.
        let right = format!("Bearer {READ}");
        let right = [("authorization", right.as_str())];
        let begun = tokio::time::Instant::now();
        let many = futures::future::join_all((0..1000).map(|_| access.who(&asked)));
        let (answers, served) = tokio::join!(many, took(&right));
        assert_eq!(served, (Role::Reader, Duration::ZERO));
        assert!(answers.iter().all(Result::is_err));
        assert_eq!(begun.elapsed(), WRONG_TOKEN_DELAY);
    }

    #[actix_rt::test]
    async fn who_acts_has_the_name_of_the_token_or_the_one_that_a_trusted_proxy_gives() {
        const ANN: &str = "the-token-of-ann-in-the-test";
        let named = NamedToken { name: "ann".to_owned(), role: Role::Reader, token: ANN.to_owned().into() };
        let proxies =
            TrustedProxies { header: "x-user".to_owned(), addresses: vec!["10.0.0.7".parse().unwrap()] };
        let access =
            Access::new(None, Some(OPERATOR.to_owned().into()), [named]).behind(Some(proxies.clone()));
        let who = async |access: &Access, peer: &str, token: &str, names: &[&str]| {
            let request = TestRequest::with_uri("/").peer_addr(format!("{peer}:1").parse().unwrap());
            let mut request = request.insert_header(("host", "localhost"));
            if !token.is_empty() {
                request = request.insert_header(("authorization", format!("Bearer {token}")));
            }
            let request =
                names.iter().fold(request, |request, name| request.append_header(("x-user", *name)));
            let who = access.who(&request.to_http_request()).await.unwrap();
            (who.role, who.name.into_owned())
        };
        let (reader, operator) = (Role::Reader, Role::Operator);
        let is = |role, name: &str| (role, name.to_owned());
        assert_eq!(who(&access, "10.0.0.8", ANN, &[]).await, is(reader, "ann"));
        assert_eq!(
            who(&access, "10.0.0.8", OPERATOR, &["eve"]).await,
            is(operator, "operator_token"),
            "any client"
        );
        assert_eq!(who(&access, "10.0.0.7", OPERATOR, &["bob b"]).await, is(operator, "bob b"));
        assert_eq!(
            who(&access, "[::ffff:10.0.0.7]", ANN, &["bob"]).await,
            is(reader, "bob"),
            "the token's role"
        );
        assert_eq!(
            who(&access, "10.0.0.7", "", &["bob"]).await,
            is(Role::None, "unknown"),
            "a name is no right"
        );
        let long = "b".repeat(LONGEST_NAME + 1);
        for names in [&["eve", "bob"][..], &[""], &["tab\tbed"], &[long.as_str()]] {
            assert_eq!(
                who(&access, "10.0.0.7", OPERATOR, names).await,
                is(operator, "operator_token"),
                "{names:?}"
            );
        }
        let open = Access::default().behind(Some(proxies));
        assert_eq!(who(&open, "10.0.0.7", "", &["bob"]).await, is(operator, "bob"));
        assert_eq!(who(&open, "127.0.0.1", "", &["bob"]).await, is(operator, "anonymous@loopback"));
    }

    #[test]
    fn the_cookie_fits_the_way_on_which_a_request_came() {
        let id = SessionId::parse(&"0a".repeat(32)).unwrap();
        let kept = |headers: &[(&'static str, &str)]| {
            Cookie::of(&request(headers)).keep(&id, Duration::from_secs(60))
        };
        let value = id.expose();
        let rest = "HttpOnly; SameSite=Strict";
        assert_eq!(kept(&[]), format!("balance_sync_session={value}; Max-Age=60; Path=/; {rest}"));
        let https = ("x-forwarded-proto", "https");
        let host = format!("__Host-balance_sync_session={value}; Max-Age=60; Path=/; {rest}; Secure");
        assert_eq!(kept(&[https]), host);
        let below = ("x-forwarded-prefix", "/ops/sync/");
        let secure =
            format!("__Secure-balance_sync_session={value}; Max-Age=60; Path=/ops/sync; {rest}; Secure");
        assert_eq!(kept(&[https, below]), secure);
        for prefix in ["/", "ops", "/ops; Domain=example", "/ops,", "/\u{fc}"] {
            assert_eq!(kept(&[https, ("x-forwarded-prefix", prefix)]), host, "{prefix}");
        }
        // By HTTPS a cookie that plain HTTP or another host of the domain could have set is none.
        let plain = format!("{COOKIE}={value}");
        let shows = |headers: &[(&'static str, &str)]| matches!(shown(&request(headers)), Shown::Session(_));
        assert!(shows(&[("cookie", plain.as_str())]));
        assert!(!shows(&[https, ("cookie", plain.as_str())]));
        assert!(shows(&[https, ("cookie", format!("a=b; __Host-{plain}; c=d").as_str())]));
    }

    #[test]
    fn tokens_are_replaced_while_tokens_are_needed_before_and_after() {
        let access = access();
        let token = |text: &str| Some(SecretString::from(text.to_owned()));
        let mut watched = access.tokens.subscribe();
        assert_eq!(access.replace_tokens(token(READ), token(OPERATOR), []), Ok(false));
        assert!(!watched.has_changed().unwrap());
        assert_eq!(access.replace_tokens(token("another-token-to-read"), token(OPERATOR), []), Ok(true));
        assert!(watched.has_changed().unwrap());
        watched.mark_unchanged();
        assert!(access.bearer(READ).is_none() && access.bearer(OPERATOR).is_some());
        assert!(access.replace_tokens(None, None, []).is_err());
        assert!(access.is_required() && access.bearer(OPERATOR).is_some());
        assert!(Access::default().replace_tokens(token(READ), None, []).is_err());
    }

    #[test]
    fn wrong_tokens_are_logged_at_a_bounded_rate_with_their_number() {
        let (mut wrong, at) = (Wrong::default(), Instant::now());
        let logged: Vec<_> =
            (0..=121).filter_map(|second| wrong.count(at + Duration::from_secs(second))).collect();
        assert_eq!(logged, [1, 60, 60]);
    }

    #[actix_rt::test]
    async fn without_tokens_only_names_of_this_machine_are_served() {
        let access = Access::default();
        for (host, served) in [
            ("localhost:8090", true),
            ("127.0.0.1:8090", true),
            ("[::1]:8090", true),
            ("LOCALHOST", true),
            ("evil.example:8090", false),
            ("localhost.evil.example", false),
        ] {
            assert_eq!(access.who(&request(&[("host", host)])).await.is_ok(), served, "{host}");
            let forwarded =
                [("host", host), ("x-forwarded-host", "localhost"), ("forwarded", "host=localhost")];
            assert_eq!(access.who(&request(&forwarded)).await.is_ok(), served, "{host} under another name");
        }
    }
}
