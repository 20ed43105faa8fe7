//! The processes of a control plane and their certificates.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

use crate::{built_tool, command_in, succeeded};

/// Of the API server.
const PORT: u16 = 6443;
const ETCD: &str = "http://127.0.0.1:2379";
/// How long a process may take to serve.
const START: Duration = Duration::from_secs(120);
/// Between two questions whether it does.
const PAUSE: Duration = Duration::from_millis(200);

/// etcd, API server and controller manager in one network namespace; ended when dropped.
#[derive(Debug)]
pub struct ControlPlane {
    dir: tempfile::TempDir,
    namespace: String,
    address: Option<IpAddr>,
    etcd: Option<Child>,
    api_server: Option<Child>,
    controllers: Option<Child>,
}

impl ControlPlane {
    /// One that does not run yet.
    ///
    /// # Errors
    /// If there is no room for its files.
    pub fn new() -> Result<Self> {
        ensure!(
            binary().is_file(),
            "{} is missing: run scripts/go-tools first",
            binary().display()
        );
        Ok(Self {
            dir: tempfile::tempdir()?,
            namespace: String::new(),
            address: None,
            etcd: None,
            api_server: None,
            controllers: None,
        })
    }

    /// A file of it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts it in a namespace that has this address, and waits until it serves.
    ///
    /// # Errors
    /// If a process does not come up; the error shows the end of its log.
    pub async fn start(&mut self, namespace: &str, address: IpAddr) -> Result<()> {
        self.namespace = namespace.to_owned();
        self.address = Some(address);
        succeeded(
            "ip link",
            command_in(namespace, "ip")?.args(["link", "set", "lo", "up"]).output()?,
        )?;
        self.make_certificates(address)?;
        write(&self.file("audit-policy.yaml"), AUDIT_POLICY)?;
        let data = format!("--data-dir={}", self.file("etcd").display());
        let urls = [
            format!("--listen-client-urls={ETCD}"),
            format!("--advertise-client-urls={ETCD}"),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        ];
        let mut etcd = command_in(namespace, "etcd")?;
        etcd.arg(data).args(urls);
        self.etcd = Some(self.spawn("etcd", etcd)?);
        self.start_api_server().await?;
        let mut controllers = command_in(namespace, binary())?;
        controllers.arg("kube-controller-manager").args(self.controller_arguments());
        self.controllers = Some(self.spawn("controllers", controllers)?);
        // Pods are refused until their namespace has a ServiceAccount.
        self.awaited(&["get", "serviceaccount", "default"]).await
    }

    /// Starts the API server, the first time or after [`Self::stop_api_server`].
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn start_api_server(&mut self) -> Result<()> {
        let mut command = command_in(&self.namespace, binary())?;
        command.arg("kube-apiserver").args(self.api_server_arguments()?);
        self.api_server = Some(self.spawn("api-server", command)?);
        let ready = self.awaited(&["get", "--raw", "/readyz"]).await;
        ready.with_context(|| self.log("api-server"))
    }

    /// Asks again and again, while the API server runs, until there is an answer.
    async fn awaited(&mut self, question: &[&str]) -> Result<()> {
        let until = Instant::now() + START;
        loop {
            let Err(why) = self.kubectl(question, None) else { return Ok(()) };
            if let Some(server) = &mut self.api_server {
                ensure!(server.try_wait()?.is_none(), "the API server has ended");
            }
            ensure!(Instant::now() < until, "not within {START:?}: {why:#}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Ends the API server.
    ///
    /// # Errors
    /// If it cannot be ended.
    pub fn stop_api_server(&mut self) -> Result<()> {
        self.api_server.take().map_or(Ok(()), end)
    }

    /// What ServiceAccounts of Weft have asked for, request by request.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn asked(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(self.file(AUDIT_LOG))?;
        let lines = text.lines();
        Ok(lines.map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// Runs `kubectl` as the administrator, with `input` on its stdin.
    ///
    /// # Errors
    /// If it fails; the error shows what it printed on stderr.
    pub fn kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<String> {
        let mut command = command_in(&self.namespace, binary())?;
        command
            .arg("kubectl")
            .arg(format!("--kubeconfig={}", self.file("admin.kubeconfig").display()))
            .arg(format!("--cache-dir={}", self.file("cache").display()))
            .args(arguments)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("kubectl")?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            stdin.write_all(input.as_bytes())?;
        }
        succeeded(&format!("kubectl {}", arguments.join(" ")), child.wait_with_output()?)
    }

    /// Writes a way to the API server as this user: of kubeconfig's `user`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_kubeconfig(&self, name: &str, user: &Value) -> Result<PathBuf> {
        let address = self.address.context("the API server has no address yet")?;
        let server = format!("https://{}", std::net::SocketAddr::new(address, PORT));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{ "name": "it", "cluster": {
                "server": server, "certificate-authority": self.file("ca.crt"),
            } }],
            "users": [{ "name": "it", "user": user }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
        });
        let path = self.file(name);
        write(&path, &config.to_string())?;
        Ok(path)
    }

    fn spawn(&self, name: &str, mut command: Command) -> Result<Child> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.file(&format!("{name}.log")))?;
        command.stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("cannot start {name}"))
    }

    /// The end of a process's log.
    fn log(&self, name: &str) -> String {
        let path = self.file(&format!("{name}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("\n")
    }

    fn flag(&self, name: &str, file: &str) -> String {
        format!("--{name}={}", self.file(file).display())
    }

    fn api_server_arguments(&self) -> Result<Vec<String>> {
        let address = self.address.context("the API server has no address yet")?;
        Ok(vec![
            format!("--etcd-servers={ETCD}"),
            format!("--secure-port={PORT}"),
            format!("--advertise-address={address}"),
            "--authorization-mode=RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
            self.flag("audit-policy-file", "audit-policy.yaml"),
            self.flag("audit-log-path", AUDIT_LOG),
            self.flag("tls-cert-file", "api.crt"),
            self.flag("tls-private-key-file", "api.key"),
            self.flag("client-ca-file", "ca.crt"),
            self.flag("service-account-key-file", "accounts.pub"),
            self.flag("service-account-signing-key-file", "accounts.key"),
        ])
    }

    fn controller_arguments(&self) -> Vec<String> {
        vec![
            self.flag("kubeconfig", "admin.kubeconfig"),
            self.flag("root-ca-file", "ca.crt"),
            self.flag("service-account-private-key-file", "accounts.key"),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            "--allocate-node-cidrs=true".to_owned(),
            format!("--cluster-cidr={POD_CIDRS}"),
            "--node-cidr-mask-size-ipv4=24".to_owned(),
            "--node-cidr-mask-size-ipv6=64".to_owned(),
            format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
            // Nobody sends heartbeats.
            "--controllers=*,-node-lifecycle-controller".to_owned(),
        ]
    }

    fn make_certificates(&self, address: IpAddr) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "cluster");
        let certificate = params.self_signed(&key)?;
        write(&self.file("ca.crt"), &certificate.pem())?;
        let issuer = Issuer::new(params, key);
        let names = [address.to_string(), "127.0.0.1".to_owned(), "kubernetes".to_owned()];
        let mut server = CertificateParams::new(names)?;
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        self.sign("api", server, &issuer)?;
        let mut admin = CertificateParams::new(Vec::new())?;
        admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        admin.distinguished_name.push(DnType::CommonName, "admin");
        admin.distinguished_name.push(DnType::OrganizationName, "system:masters");
        self.sign("admin", admin, &issuer)?;
        let accounts = KeyPair::generate()?;
        write(&self.file("accounts.key"), &accounts.serialize_pem())?;
        write(&self.file("accounts.pub"), &accounts.public_key_pem())?;
        let user = json!({
            "client-certificate": self.file("admin.crt"), "client-key": self.file("admin.key"),
        });
        self.write_kubeconfig("admin.kubeconfig", &user).map(drop)
    }

    fn sign(
        &self,
        name: &str,
        params: CertificateParams,
        issuer: &Issuer<'_, KeyPair>,
    ) -> Result<()> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, issuer)?;
        write(&self.file(&format!("{name}.crt")), &certificate.pem())?;
        write(&self.file(&format!("{name}.key")), &key.serialize_pem())
    }
}

const AUDIT_LOG: &str = "audit.log";
/// What Weft asks for.
const AUDIT_POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: [\"system:serviceaccounts:weft-system\"]}
- {level: None}
";

/// As the lab's hub has them.
const POD_CIDRS: &str = "10.244.0.0/16,fd00:10:244::/48";
const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let children = [self.controllers.take(), self.api_server.take(), self.etcd.take()];
        for child in children.into_iter().flatten() {
            if let Err(error) = end(child) {
                eprintln!("a process of the control plane stays: {error:#}");
            }
        }
    }
}

fn binary() -> PathBuf {
    built_tool("control-plane")
}

fn write(path: &Path, text: &str) -> Result<()> {
    let file =
        std::fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(path);
    Ok(file?.write_all(text.as_bytes())?)
}

fn end(mut child: Child) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGKILL)?;
    child.wait()?;
    Ok(())
}
