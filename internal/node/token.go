package node

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/softtoken"
)

// openTokens opens the tokens of the configuration: PKCS#11 modules, or the soft token. On an error none stays open.
func openTokens(c *Config) ([]hsm.Token, error) {
	if len(c.HSM) == 0 {
		t, err := softtoken.Open(softtoken.Config{Dir: softTokenDir(c), PINFile: c.SoftTokenPINFile, Create: true})
		if err != nil {
			return nil, err
		}
		return []hsm.Token{t}, nil
	}
	var tokens []hsm.Token
	for _, uri := range c.HSM {
		t, err := openPKCS11(uri)
		if err != nil {
			return nil, errors.Join(err, closeTokens(tokens))
		}
		for _, other := range tokens {
			if i := t.Info(); i.Serial == other.Info().Serial && i.Module == other.Info().Module {
				err := fmt.Errorf("node: token %q serial %q is named twice", i.Label, i.Serial)
				return nil, errors.Join(err, t.Close(), closeTokens(tokens))
			}
		}
		tokens = append(tokens, t)
	}
	return tokens, nil
}

// sessionsPerToken is the setting, or its default.
func sessionsPerToken(c *Config, tokens []hsm.Token) int {
	if c.SessionsPerToken > 0 {
		return c.SessionsPerToken
	}
	for _, t := range tokens {
		if !t.Info().Software {
			return 4
		}
	}
	return 2
}

func softTokenDir(c *Config) string { return filepath.Join(c.DataDir, "softtoken") }

// closeTimeout is how long a token may take to close: a module can hang.
const closeTimeout = 5 * time.Second

func closeTokens(tokens []hsm.Token) error {
	var errs []error
	for _, t := range tokens {
		closed := make(chan error, 1)
		go func() { closed <- t.Close() }()
		select {
		case err := <-closed:
			errs = append(errs, err)
		case <-time.After(closeTimeout):
			errs = append(errs, fmt.Errorf("node: token %q does not close; it is left behind", t.Info().Label))
		}
	}
	return errors.Join(errs...)
}
