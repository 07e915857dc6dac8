package policy

import "strings"

// PrincipalARN is the ARN of a principal as a Binder is asked for it: of an account's 12 digits that of its root user.
func PrincipalARN(s, partition string) string {
	if strings.HasPrefix(s, "arn:") {
		return s
	}
	return "arn:" + partition + ":iam::" + s + ":root"
}

// Within refuses a policy that names principals of another partition than the server's, whether they can exist or not.
func (p *Policy) Within(partition string) error {
	for _, arn := range p.principals {
		if strings.HasPrefix(arn, "arn:") && !strings.HasPrefix(arn, "arn:"+partition+":") {
			return &Error{invalidPrincipals}
		}
	}
	return nil
}
