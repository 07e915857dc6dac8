package policy

import "github.com/keyplane/keyplane/internal/kmsapi"

// ActionCode numbers the actions of KMS from 1, so that a statement holds what it says of each of them in one word. 0 is any other action:
// it is looked for by its name.
type ActionCode uint8

// CodeOf is the code of an action, spelled kms:Decrypt.
func CodeOf(action string) ActionCode { return actionCodes[action] }

// actionSet has bit c for the action of code c.
type actionSet uint64

func (s actionSet) has(c ActionCode) bool { return s>>c&1 != 0 }

// actionNames are in the order of their codes, in lower case; the first is that of code 0 and empty.
var actionNames [][]byte

var actionCodes = func() map[string]ActionCode {
	m := map[string]ActionCode{}
	add := func(name string) {
		m["kms:"+name] = ActionCode(len(actionNames))
		actionNames = append(actionNames, []byte(lower("kms:"+name)))
	}
	actionNames = [][]byte{nil}
	for i := range kmsapi.Operations {
		add(kmsapi.Operations[i].Name)
	}
	add("ReEncryptFrom")
	add("ReEncryptTo")
	if len(actionNames) > 64 {
		panic("policy: more actions than actionSet has bits")
	}
	return m
}()
