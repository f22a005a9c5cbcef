//! Who asks, and what they may do: tokens, roles, and the guard in front of every path of the API.
//!
//! - Without tokens, which the configuration allows on a loopback address alone, every client that reaches the interface is its
//!   operator, as long as they came by a name of this machine: a web page that has its own name point here has not.
//! - With tokens: `Authorization: Bearer …`, or the cookie that `POST /api/v1/session` sets. Tokens are compared in
//!   constant time, and a wrong one costs time, wherever it is shown: an address can try as many per second as it may have
//!   connections. None is refused unread, so that right ones are served while wrong ones pour in.
//! - Tokens may have names, and a proxy that is trusted by its address may name who asks: the log of actions and the screens show
//!   the name. The role is the token's in any case.
//! - What changes something has to come with a Bearer token or with the header `X-Balance-Sync: 1`, which no other site's
//!   page can send.

use std::{
    borrow::Cow,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use actix_web::{
    FromRequest, HttpMessage, HttpRequest,
    body::MessageBody,
    dev::{Payload, ServiceRequest, ServiceResponse},
    http::{Method, header},
    middleware::Next,
    web::Data,
};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use super::problem::Problem;

/// Longest name of who asks, in bytes.
pub const LONGEST_NAME: usize = 64;
/// The cookie of a session.
pub(super) const COOKIE: &str = "balance_sync_token";
/// What a request of our own pages carries.
const OWN_PAGE: &str = "x-balance-sync";
/// A wrong token is answered after this. Right ones never wait.
const WRONG_TOKEN_DELAY: Duration = Duration::from_secs(1);
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
}

impl Who {
    pub(super) const UNKNOWN: Self = Self { role: Role::None, name: Cow::Borrowed("unknown") };
    pub(super) const LOOPBACK: Self =
        Self { role: Role::Operator, name: Cow::Borrowed("anonymous@loopback") };

    /// Whether amounts are hidden from them.
    pub(super) fn amounts_hidden(&self) -> bool {
        self.role < Role::Operator
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

/// The tokens in force. Empty = the interface is open to every client that reaches it.
#[derive(Clone, Default)]
pub struct Access {
    tokens: Arc<[NamedToken]>,
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
            .field("tokens", &self.tokens.len())
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
        let token = |name: &str, role, token: Option<SecretString>| {
            token.map(|token| NamedToken { name: name.to_owned(), role, token })
        };
        let unnamed =
            [token("operator_token", Role::Operator, operator), token("read_token", Role::Reader, read)];
        let tokens = unnamed.into_iter().flatten().chain(named).collect();
        Self { tokens, proxies: None, only_looks: false, wrong: Arc::default() }
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
        !self.tokens.is_empty()
    }

    /// Whose token it is. Takes the same time for all tokens of a length.
    fn bearer(&self, token: &str) -> Option<Who> {
        // All are always compared.
        let same =
            |known: &NamedToken| bool::from(known.token.expose_secret().as_bytes().ct_eq(token.as_bytes()));
        self.tokens.iter().fold(None, |found, known| match same(known) {
            true => found.or(Some(Who { role: known.role, name: Cow::Owned(known.name.clone()) })),
            false => found,
        })
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
        let Some((token, from_cookie)) = shown(request) else { return Ok(Who::UNKNOWN) };
        match self.bearer(&token) {
            Some(who) => Ok(self.named(request, who)),
            None => {
                self.turn_away(request).await;
                // A cookie outlives a change of tokens; its user signs in again.
                if from_cookie { Ok(Who::UNKNOWN) } else { Err(Problem::wrong_token()) }
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

/// The token that a request shows, and whether a cookie shows it.
fn shown(request: &HttpRequest) -> Option<(String, bool)> {
    if let Some(value) = request.headers().get(header::AUTHORIZATION) {
        let value = value.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| (token.trim().to_owned(), false));
    }
    let cookies = request.headers().get_all(header::COOKIE).filter_map(|value| value.to_str().ok());
    let token = cookies
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE).then_some(value))?;
    let token = percent_encoding::percent_decode_str(token).decode_utf8().ok()?;
    Some((token.into_owned(), true))
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
        // Who has a wrong cookie or header must still be able to ask what is needed, and to sign in.
        Err(problem) if is_session(&request) && access.is_required() && request.method() != Method::POST => {
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
    async fn a_token_is_whose_it_is_in_header_and_cookie() {
        let access = access();
        for (headers, role) in [
            (vec![("authorization", format!("Bearer {READ}"))], Role::Reader),
            (vec![("authorization", format!("bearer {OPERATOR}"))], Role::Operator),
            (vec![("cookie", format!("a=b; {COOKIE}={OPERATOR}; c=d"))], Role::Operator),
            (vec![("cookie", format!("{COOKIE}={}", READ.replace('-', "%2D")))], Role::Reader),
            (vec![("cookie", format!("x{COOKIE}={READ}"))], Role::None),
            (vec![("cookie", format!("{COOKIE}=old-token-of-the-test"))], Role::None),
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
