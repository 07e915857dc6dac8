// Command demo does the main job on real input: it serves from a fresh SoftHSM token, envelope-encrypts this repository's own files with
// data keys from GenerateDataKey, kills the server with SIGKILL, starts it again, decrypts everything and compares byte by byte; then it
// drives load for ten seconds and prints the report. It talks to the server through the official AWS SDK only.
package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

const (
	module = "/usr/lib/softhsm/libsofthsm2.so"
	region = "us-east-1"
	alias  = "alias/demo"
)

func main() {
	keyplane := flag.String("keyplane", "bin/keyplane", "the keyplane `BINARY`")
	load := flag.Duration("load", 10*time.Second, "length of the load test")
	flag.Parse()
	if err := run(*keyplane, *load); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(binary string, load time.Duration) error {
	tmp, err := os.MkdirTemp("", "keyplane-demo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	uri, err := newToken(binary, tmp)
	if err != nil {
		return err
	}
	s := &server{binary: binary, dir: filepath.Join(tmp, "data"), uri: uri, config: filepath.Join(tmp, "keyplane.yaml")}
	// A disk that others use too may take longer for a sync than calls wait by default.
	if err := os.WriteFile(s.config, []byte("audit: {timeout: 5s}\n"), 0o600); err != nil {
		return err
	}
	if s.addr, err = freeAddr(); err != nil {
		return err
	}
	if err := s.start(); err != nil {
		return err
	}
	defer func() { s.kill() }()
	ctx := context.Background()
	client, err := s.client(ctx)
	if err != nil {
		return err
	}

	key, err := client.CreateKey(ctx, &kms.CreateKeyInput{Description: aws.String("the demo's key")})
	if err != nil {
		return err
	}
	if _, err := client.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String(alias), TargetKeyId: key.KeyMetadata.KeyId}); err != nil {
		return err
	}
	fmt.Printf("key %s as %s\n", aws.ToString(key.KeyMetadata.Arn), alias)

	files, err := sources()
	if err != nil {
		return err
	}
	sealed := filepath.Join(tmp, "sealed")
	var total int64
	for _, f := range files {
		n, err := sealFile(ctx, client, f, filepath.Join(sealed, f))
		if err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		total += n
	}
	fmt.Printf("sealed %d files, %d bytes, each under a data key of its own\n", len(files), total)

	s.kill()
	fmt.Println("killed the server with SIGKILL")
	if err := s.start(); err != nil {
		return err
	}
	for _, f := range files {
		if err := openFile(ctx, client, f, filepath.Join(sealed, f)); err != nil {
			return fmt.Errorf("%s after the restart: %w", f, err)
		}
	}
	fmt.Printf("opened %d files after the restart: all equal to the originals, byte by byte\n", len(files))

	cmd := exec.Command(binary, "loadtest", "--endpoint", "http://"+s.addr, "--region", region, "--op", "GenerateDataKey", "--duration", load.String())
	cmd.Env = append(os.Environ(), "AWS_SHARED_CREDENTIALS_FILE="+s.credentials())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// newToken makes a SoftHSM token with keyplane's roots in it, for this process's children (SOFTHSM2_CONF).
func newToken(binary, dir string) (uri string, err error) {
	tokens, conf, pin := filepath.Join(dir, "tokens"), filepath.Join(dir, "softhsm2.conf"), filepath.Join(dir, "pin")
	if err := errors.Join(
		os.Mkdir(tokens, 0o700),
		os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\nlog.level = ERROR\n"), 0o600),
		os.WriteFile(pin, []byte("8501"), 0o600),
		os.Setenv("SOFTHSM2_CONF", conf),
	); err != nil {
		return "", err
	}
	uri = "pkcs11:token=demo?module-path=" + module + "&pin-source=file:" + pin
	if err := show("softhsm2-util", "--init-token", "--free", "--label", "demo", "--so-pin", "7410", "--pin", "8501"); err != nil {
		return "", err
	}
	return uri, show(binary, "hsm", "init", "--hsm", uri)
}

// show runs a command and prints what it prints.
func show(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	fmt.Print(string(out))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// server is the keyplane process.
type server struct {
	binary, dir, uri, addr, config string
	cmd                            *exec.Cmd
}

func (s *server) credentials() string { return filepath.Join(s.dir, "credentials") }

func (s *server) start() error {
	s.cmd = exec.Command(s.binary, "serve", "--listen", s.addr, "--data-dir", s.dir, "--region", region, "--hsm", s.uri, "--config", s.config)
	s.cmd.Stdout, s.cmd.Stderr = os.Stdout, os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if resp, err := http.Get("http://" + s.addr + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
	}
	s.kill()
	return errors.New("the server was not ready within a minute")
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func (s *server) client(ctx context.Context) (*kms.Client, error) {
	cfg, err := config.LoadDefaultConfig(ctx, config.WithRegion(region), config.WithSharedCredentialsFiles([]string{s.credentials()}), config.WithSharedConfigFiles(nil), config.WithSharedConfigProfile("default"))
	if err != nil {
		return nil, err
	}
	return kms.NewFromConfig(cfg, func(o *kms.Options) { o.BaseEndpoint = aws.String("http://" + s.addr) }), nil
}

func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// sources are the files that git tracks here; without git, every file below this folder.
func sources() ([]string, error) {
	if out, err := exec.Command("git", "ls-files", "-z").Output(); err == nil && len(out) > 0 {
		return strings.Split(strings.TrimRight(string(out), "\x00"), "\x00"), nil
	}
	var files []string
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	return files, err
}

// sealFile writes len(blob) (4) || blob || nonce (12) || AES-256-GCM of the file. The path is the encryption context.
func sealFile(ctx context.Context, client *kms.Client, path, to string) (int64, error) {
	plain, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	data, err := client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
		KeyId: aws.String(alias), KeySpec: types.DataKeySpecAes256, EncryptionContext: map[string]string{"path": path},
	})
	if err != nil {
		return 0, err
	}
	aead, err := newGCM(data.Plaintext)
	if err != nil {
		return 0, err
	}
	out := binary.BigEndian.AppendUint32(nil, uint32(len(data.CiphertextBlob)))
	out = append(out, data.CiphertextBlob...)
	nonce := make([]byte, aead.NonceSize())
	_, _ = rand.Read(nonce)
	out = aead.Seal(append(out, nonce...), nonce, plain, []byte(path))
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return 0, err
	}
	return int64(len(plain)), os.WriteFile(to, out, 0o600)
}

// openFile decrypts what sealFile wrote and compares it with the original.
func openFile(ctx context.Context, client *kms.Client, path, from string) error {
	in, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint32(in))
	blob, in := in[4:4+n], in[4+n:]
	data, err := client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: map[string]string{"path": path}})
	if err != nil {
		return err
	}
	aead, err := newGCM(data.Plaintext)
	if err != nil {
		return err
	}
	plain, err := aead.Open(nil, in[:12], in[12:], []byte(path))
	if err != nil {
		return err
	}
	want, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(plain, want) {
		return errors.New("the decrypted file differs from the original")
	}
	return nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
